// A stock relying party of OpenID Connect: discovers the issuer, takes its keys, and verifies tokens by them.
//
//	oidc-verify -issuer URL -audience A -roots PEM-FILE [-address HOST:PORT]
//
// Reads tokens from standard input, a line each, and prints a JSON line for each: {"sub": "..."} or {"error": "..."}.
// One process keeps its keys from token to token, as a service does. -address is where the issuer's name leads.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

func main() {
	issuer := flag.String("issuer", "", "the issuer's URL")
	audience := flag.String("audience", "", "the audience that tokens must have")
	roots := flag.String("roots", "", "PEM file with the roots of the issuer's web certificate")
	address := flag.String("address", "", "host and port to connect to, whatever the issuer's name")
	flag.Parse()
	if err := run(*issuer, *audience, *roots, *address); err != nil {
		fmt.Fprintln(os.Stderr, "oidc-verify:", err)
		os.Exit(1)
	}
}

func run(issuer, audience, roots, address string) error {
	client, err := newClient(roots, address)
	if err != nil {
		return err
	}
	ctx := oidc.ClientContext(context.Background(), client)
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return err
	}
	verifier := provider.VerifierContext(ctx, &oidc.Config{ClientID: audience})
	output := json.NewEncoder(os.Stdout)
	tokens := bufio.NewScanner(os.Stdin)
	for tokens.Scan() {
		answer := map[string]string{}
		if token, err := verifier.Verify(ctx, tokens.Text()); err != nil {
			answer["error"] = err.Error()
		} else {
			answer["sub"] = token.Subject
		}
		if err := output.Encode(answer); err != nil {
			return err
		}
	}
	return tokens.Err()
}

func newClient(roots, address string) (*http.Client, error) {
	pem, err := os.ReadFile(roots)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("no certificate among the roots")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	if address != "" {
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	}
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}, nil
}
