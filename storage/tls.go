package storage

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// trusting is a client's TLS configuration that trusts the authorities of a PEM file beside those of roots (nil: the
// system's). Without a file it is nil, which is the default, unless there are roots.
func trusting(caFile string, roots *x509.CertPool) (*tls.Config, error) {
	if caFile == "" && roots == nil {
		return nil, nil
	}
	if caFile != "" {
		content, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("reading the file of certificate authorities: %w: %w", ErrInvalid, err)
		}
		if roots == nil {
			if roots, err = x509.SystemCertPool(); err != nil {
				return nil, fmt.Errorf("reading the system's certificate authorities: %w", err)
			}
		} else {
			roots = roots.Clone()
		}
		if !roots.AppendCertsFromPEM(content) {
			return nil, fmt.Errorf("the file of certificate authorities %s has no certificate in PEM form: %w", caFile, ErrInvalid)
		}
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, nil
}
