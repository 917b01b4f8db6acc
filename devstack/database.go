package devstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

// database is the dev server's SQLite file. The server cannot bring a file of another version up to date, so that each
// version has its own; what a lost file held is rebuilt from the catalog.
type database struct {
	file   string // temporal-<server version>.db
	marker string // says that the server was usable with this file once
}

// databaseMarker is the content of the marker.
type databaseMarker struct {
	Server  string    `json:"server"`  // the version that made the file
	Created time.Time `json:"created"` // when it was first usable
}

// openDatabase makes the directory, names the file for this server, and says what a person should know about it.
func openDatabase(dir, serverVersion string, progress func(string)) (database, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return database{}, fmt.Errorf("making the directory for Temporal's database: %w", err)
	}
	file := filepath.Join(dir, "temporal-"+serverVersion+".db")
	db := database{file: file, marker: file + ".json"}
	_, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		others, err := filepath.Glob(filepath.Join(dir, "temporal-*.db"))
		if err != nil {
			return database{}, fmt.Errorf("looking for Temporal's database: %w", err)
		}
		if len(others) > 0 {
			progress(fmt.Sprintf("Temporal's server is now version %s, which cannot read %s: it begins with an empty database. "+
				"No workspace is lost, they are rebuilt from the catalog; the old file is kept.", serverVersion, filepath.Base(others[len(others)-1])))
		}
		return db, nil
	case err != nil:
		return database{}, fmt.Errorf("looking for Temporal's database: %w", err)
	}
	if _, err := os.Stat(db.marker); errors.Is(err, fs.ErrNotExist) {
		// The server was killed while it made the file. It would never mend the half of a schema by itself.
		if err := db.setAside(); err != nil {
			return database{}, err
		}
		progress("Temporal's database was not finished when its server was last killed: it begins with an empty one.")
	} else if err != nil {
		return database{}, fmt.Errorf("looking for Temporal's database: %w", err)
	}
	return db, nil
}

// setAside renames an unfinished database out of the way.
func (d database) setAside() error {
	for _, suffix := range []string{"-wal", "-shm", ""} { // the file itself last: without it nothing is done again
		err := os.Rename(d.file+suffix, d.file+suffix+".unfinished")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("moving Temporal's unfinished database aside: %w", err)
		}
	}
	return nil
}

// markUsable records that the server answered with this file.
func (d database) markUsable(serverVersion string) error {
	if _, err := os.Stat(d.marker); err == nil {
		return nil
	}
	content, err := json.Marshal(databaseMarker{Server: serverVersion, Created: time.Now().UTC()})
	if err != nil {
		return fmt.Errorf("describing Temporal's database: %w", err)
	}
	if err := renameio.WriteFile(d.marker, append(content, '\n'), 0o600); err != nil {
		return fmt.Errorf("describing Temporal's database: %w", err)
	}
	return nil
}
