package dataport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
)

const certificateFile = "dataport.pem"

// certificateLife is long, and nobody checks it: the client pins the certificate itself.
const certificateLife = 20 * 365 * 24 * time.Hour

// fingerprintOf is the lower-case hex SHA-256 of a certificate's DER.
func fingerprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// loadOrMakeCertificate returns the certificate that is kept in dir, or a new one. One that cannot be used is replaced:
// the fingerprint is announced at every registration, so that nothing depends on the old one.
func loadOrMakeCertificate(dir, node string, logger *slog.Logger) (tls.Certificate, error) {
	if dir == "" {
		text, err := makeCertificate(node)
		if err != nil {
			return tls.Certificate{}, err
		}
		return tls.X509KeyPair(text, text)
	}
	path := filepath.Join(dir, certificateFile)
	certificate, err := readCertificate(path)
	if err == nil {
		return certificate, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		logger.Warn("data port: the kept certificate cannot be used, a new one is made", "file", path, "error", err)
	}
	text, err := makeCertificate(node)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return tls.Certificate{}, err
	}
	if err := replaceFile(path, text); err != nil {
		return tls.Certificate{}, err
	}
	return readCertificate(path)
}

// replaceFile does not go through renameio.WriteFile, which keeps the mode of the file that is there: it may be exposed,
// and that the reason to replace it.
func replaceFile(path string, content []byte) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

func readCertificate(path string) (tls.Certificate, error) {
	info, err := os.Stat(path)
	if err != nil {
		return tls.Certificate{}, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return tls.Certificate{}, fmt.Errorf("it holds a private key and can be read by others (mode %04o)", mode)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(text, text)
}

// makeCertificate returns a new self-signed certificate and its key, in PEM.
func makeCertificate(node string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "holdfast data port " + node},
		NotBefore:    time.Now().Add(-24 * time.Hour),
		NotAfter:     time.Now().Add(certificateLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := errors.Join(
		pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}
