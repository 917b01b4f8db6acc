package devstack

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"holdfast/storage/resolver/dnsserver"
)

// startStorage starts the DNS servers and the GCS emulator, and makes the directory that is the second store.
func (s *Stack) startStorage(ctx context.Context) error {
	o := s.options.Storage
	address, err := loopback(o.Address)
	if err != nil {
		return err
	}
	port := o.Port
	if port == 0 {
		if port, err = freePort(o.Address); err != nil {
			return fmt.Errorf("finding a place for the object store: %w (not every system has other loopback addresses than 127.0.0.1)", err)
		}
	} else if err := checkPort("the object store", o.Address, port); err != nil {
		return err
	}
	s.options.Storage.Port = port

	s.say(EventStarting, "dns", "")
	for range o.DNSServers {
		server, err := dnsserver.New("127.0.0.1:0", map[string]netip.Addr{o.Host: address})
		if err != nil {
			return fmt.Errorf("starting a DNS server: %w", err)
		}
		server.SetTTL(o.TTL)
		s.dns = append(s.dns, server)
		s.file.DNS = append(s.file.DNS, server.Addr())
	}
	s.say(EventReady, "dns", "")

	s.file.GCSEndpoint = "http://" + net.JoinHostPort(o.Host, strconv.Itoa(port))
	s.file.Stores = []string{"gs://" + o.Bucket}
	switch {
	case o.DirectoryURL != "":
		s.file.Stores = append(s.file.Stores, o.DirectoryURL)
	case !o.NoDirectory:
		dir := filepath.Join(s.options.DataDir, "store")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the directory store: %w", err)
		}
		s.file.Stores = append(s.file.Stores, (&url.URL{Scheme: "file", Path: dir}).String())
	}

	dir := filepath.Join(s.options.DataDir, "storage")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the object store's directory: %w", err)
	}
	s.storage, err = s.newComponent("storage",
		func() Command { return s.options.Roles.Storage(s.File(), dir, s.storageListen(), o.Bucket) },
		func(context.Context) (func(context.Context) error, error) { return s.storageAnswers, nil })
	if err != nil {
		return err
	}
	return s.storage.Start(ctx)
}

// loopback reads an address that only this machine reaches: the emulator lets everyone in.
func loopback(text string) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return address, fmt.Errorf("the object store's address: %w", err)
	}
	if !address.IsLoopback() {
		return address, fmt.Errorf("the object store's address %s is not a loopback address", text)
	}
	return address, nil
}

func (s *Stack) storageListen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return net.JoinHostPort(s.address, strconv.Itoa(s.options.Storage.Port))
}

// StorageURL is where the GCS emulator is now, by number and not by name: for its /_stats and /_throttle.
func (s *Stack) StorageURL() string { return "http://" + s.storageListen() }

// storageAnswers asks the emulator for its counts.
func (s *Stack) storageAnswers(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.StorageURL()+"/_stats?objects=0", nil)
	if err != nil {
		return fmt.Errorf("asking the object store: %w", err)
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy: this is loopback
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("asking the object store: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("asking the object store: it answered %s", response.Status)
	}
	return nil
}

// Storage is the GCS emulator.
func (s *Stack) Storage() *Component { return s.storage }

// DNS are the servers that know where the storage is. They run in this process; use SetMode to break them.
func (s *Stack) DNS() []*dnsserver.Server { return s.dns }

// MoveStorage gives the GCS emulator another loopback address, with its data and the same port: its process is ended,
// which cuts all connections in the middle of requests too but still counts what they had brought, and started there;
// then the DNS servers are told. Who only
// remembers the old address finds nobody.
func (s *Stack) MoveStorage(ctx context.Context, to string) error {
	address, err := loopback(to)
	if err != nil {
		return fmt.Errorf("moving the storage: %w", err)
	}
	if err := checkPort("the object store", to, s.options.Storage.Port); err != nil {
		return fmt.Errorf("moving the storage: %w", err)
	}
	if err := s.storage.Stop(ctx); err != nil {
		return fmt.Errorf("moving the storage: %w", err)
	}
	s.mu.Lock()
	s.address = to
	s.mu.Unlock()
	if err := s.storage.Start(ctx); err != nil {
		return fmt.Errorf("moving the storage: %w", err)
	}
	for _, server := range s.dns {
		server.Set(s.options.Storage.Host, address)
	}
	return nil
}
