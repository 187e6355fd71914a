// A SPIFFE workload on go-spiffe: it takes what an agent's Workload API gives and prints it as JSON lines.
//
//	spiffe-client x509                        the default X.509-SVID and the trusted roots, checked by go-spiffe
//	spiffe-client watch                       one line at once and one per X.509 update, until it is ended
//	spiffe-client jwt AUDIENCE                a JWT-SVID, validated here against the bundle and by the agent
//	spiffe-client bundles                     the trust domains of the X.509 and JWT bundles
//	spiffe-client serve EXPECTED-ID           an mTLS echo server on a free port; prints {"address"} first
//	spiffe-client call ADDRESS EXPECTED-ID    one mTLS call to such a server
//	spiffe-client federate URL TD ID BUNDLE   the bundle of TD at an https_spiffe endpoint that proves to be ID by the
//	                                          SPIFFE bundle in the file BUNDLE
//
// The socket is SPIFFE_ENDPOINT_SOCKET. The exit status is 1 on any error, with the error on stderr; -timeout bounds
// the whole run.
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	timeout := flag.Duration("timeout", 30*time.Second, "bound on the whole run")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	if err := run(ctx, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "spiffe-client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "x509":
		return showX509(ctx)
	case len(args) == 1 && args[0] == "watch":
		return watchX509(ctx)
	case len(args) == 2 && args[0] == "jwt":
		return showJWT(ctx, args[1])
	case len(args) == 1 && args[0] == "bundles":
		return showBundles(ctx)
	case len(args) == 2 && args[0] == "serve":
		return serve(ctx, args[1])
	case len(args) == 3 && args[0] == "call":
		return call(ctx, args[1], args[2])
	case len(args) == 5 && args[0] == "federate":
		return federate(ctx, args[1], args[2], args[3], args[4])
	}
	return errors.New("unknown command; see the head of main.go")
}

func showX509(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	return printX509(source, svid)
}

func watchX509(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	for {
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		if err := printX509(source, svid); err != nil {
			return err
		}
		if err := source.WaitUntilUpdated(ctx); err != nil {
			return err
		}
	}
}

// printX509 verifies the chain against the bundle that came with it: an SVID that its own trust domain would refuse
// is an error.
func printX509(source *workloadapi.X509Source, svid *x509svid.SVID) error {
	id, _, err := x509svid.Verify(svid.Certificates, source)
	if err != nil {
		return fmt.Errorf("own SVID does not verify: %w", err)
	}
	bundle, err := source.GetX509BundleForTrustDomain(id.TrustDomain())
	if err != nil {
		return err
	}
	leaf := svid.Certificates[0]
	return printLine(map[string]any{
		"spiffe_id":    svid.ID.String(),
		"verified_id":  id.String(),
		"serial":       leaf.SerialNumber.String(),
		"not_before":   leaf.NotBefore.UTC().Format(time.RFC3339),
		"not_after":    leaf.NotAfter.UTC().Format(time.RFC3339),
		"dns_names":    append([]string{}, leaf.DNSNames...),
		"key":          keyName(leaf.PublicKey),
		"chain_length": len(svid.Certificates),
		"roots":        len(bundle.X509Authorities()),
		"hint":         svid.Hint,
	})
}

func keyName(key any) string {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return key.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	case *rsa.PublicKey:
		return "RSA-" + strconv.Itoa(key.N.BitLen())
	}
	return fmt.Sprintf("%T", key)
}

func showJWT(ctx context.Context, audience string) error {
	client, err := ready(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	fetched, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return err
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	here, err := jwtsvid.ParseAndValidate(fetched.Marshal(), bundles, []string{audience})
	if err != nil {
		return fmt.Errorf("not valid against the bundle: %w", err)
	}
	agent, err := client.ValidateJWTSVID(ctx, fetched.Marshal(), audience)
	if err != nil {
		return fmt.Errorf("not valid to the agent: %w", err)
	}
	_, refused := client.ValidateJWTSVID(ctx, fetched.Marshal(), audience+"-other")
	return printLine(map[string]any{
		"spiffe_id":              here.ID.String(),
		"agent_says":             agent.ID.String(),
		"audience":               here.Audience,
		"expiry":                 here.Expiry.UTC().Format(time.RFC3339),
		"other_audience_refused": refused != nil,
	})
}

func showBundles(ctx context.Context) error {
	client, err := ready(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	certificates, err := client.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	keys, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	x509Domains := map[string]int{}
	for _, bundle := range certificates.Bundles() {
		x509Domains[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	jwtDomains := map[string]int{}
	for _, bundle := range keys.Bundles() {
		jwtDomains[bundle.TrustDomain().Name()] = len(bundle.JWTAuthorities())
	}
	return printLine(map[string]any{"x509": x509Domains, "jwt": jwtDomains})
}

// ready makes a client once the workload has an identity: a source waits for that, single fetches do not.
func ready(ctx context.Context) (*workloadapi.Client, error) {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return nil, err
	}
	if err := source.Close(); err != nil {
		return nil, err
	}
	return workloadapi.New(ctx)
}

func serve(ctx context.Context, expected string) error {
	authorize, err := authorizer(expected)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, authorize))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	if err := printLine(map[string]any{"address": listener.Addr().String()}); err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		echo(conn)
	}
}

// echo answers one line, or nothing where the handshake fails: the client tells that story.
func echo(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil {
		fmt.Fprint(conn, line)
	}
}

func call(ctx context.Context, address, expected string) error {
	authorize, err := authorizer(expected)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	dialer := tls.Dialer{Config: tlsconfig.MTLSClientConfig(source, source, authorize)}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	peer := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	id, err := peerID(peer)
	if err != nil {
		return err
	}
	return printLine(map[string]any{"peer": id, "answer": answer[:len(answer)-1]})
}

func federate(ctx context.Context, url, domain, endpoint, file string) error {
	td, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return err
	}
	id, err := spiffeid.FromString(endpoint)
	if err != nil {
		return err
	}
	first, err := spiffebundle.Load(td, file)
	if err != nil {
		return err
	}
	fetched, err := federation.FetchBundle(ctx, td, url, federation.WithSPIFFEAuth(first.X509Bundle(), id))
	if err != nil {
		return err
	}
	sequence, _ := fetched.SequenceNumber()
	hint, _ := fetched.RefreshHint()
	return printLine(map[string]any{
		"trust_domain": fetched.TrustDomain().Name(),
		"sequence":     sequence,
		"refresh_hint": int(hint.Seconds()),
		"x509":         len(fetched.X509Authorities()),
		"jwt":          len(fetched.JWTAuthorities()),
	})
}

func authorizer(expected string) (tlsconfig.Authorizer, error) {
	id, err := spiffeid.FromString(expected)
	if err != nil {
		return nil, err
	}
	return tlsconfig.AuthorizeID(id), nil
}

func peerID(certificate *x509.Certificate) (string, error) {
	id, err := x509svid.IDFromCert(certificate)
	return id.String(), err
}

func printLine(value map[string]any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}
