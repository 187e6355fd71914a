// What spire-controller-manager does with a server, by its own client package: the probe for fields that a server does
// not know, a reconcile of entries and federation relationships in its batches and pages, and its webhook's certificate.
//
//	controller-client SOCKET TRUST-DOMAIN ENTRIES
//
// Prints one JSON object.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-controller-manager/pkg/spireapi"
	"google.golang.org/grpc/codes"
)

type report struct {
	Unsupported []string `json:"unsupported"`
	Created     int      `json:"created"`
	Similar     int      `json:"similar"`
	Listed      int      `json:"listed"`
	Same        bool     `json:"same"`
	Updated     int      `json:"updated"`
	Deleted     int      `json:"deleted"`
	Left        int      `json:"left"`
	Federation  []string `json:"federation"`
	Roots       int      `json:"roots"`
	WebhookID   string   `json:"webhook_id"`
	WebhookDNS  []string `json:"webhook_dns"`
}

func main() {
	made, err := run(os.Args[1], spiffeid.RequireTrustDomainFromString(os.Args[2]), os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(made)
}

func run(socket string, td spiffeid.TrustDomain, count string) (*report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := spireapi.DialSocket(socket, nil)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	made := &report{Unsupported: []string{}}

	// Twice, as it does every ten minutes: the first must leave nothing behind.
	for range 2 {
		fields, err := client.GetUnsupportedFields(ctx, td.Name())
		if err != nil {
			return nil, fmt.Errorf("probe: %w", err)
		}
		for field := range fields {
			made.Unsupported = append(made.Unsupported, string(field))
		}
	}
	number, err := strconv.Atoi(count)
	if err != nil {
		return nil, err
	}
	if err := reconcile(ctx, client, td, number, made); err != nil {
		return nil, err
	}
	if err := federate(ctx, client, made); err != nil {
		return nil, err
	}
	return made, webhook(ctx, client, td, made)
}

func reconcile(ctx context.Context, client spireapi.Client, td spiffeid.TrustDomain, number int, made *report) error {
	wanted := make([]spireapi.Entry, number)
	for i := range wanted {
		wanted[i] = spireapi.Entry{
			SPIFFEID: spiffeid.RequireFromPathf(td, "/ns/shop/sa/pod-%d", i),
			ParentID: spiffeid.RequireFromPath(td, "/spire/agent/k8s_psat/demo/node"),
			Selectors: []spireapi.Selector{
				{Type: "k8s", Value: "ns:shop"},
				{Type: "k8s", Value: fmt.Sprintf("pod-uid:00000000-0000-0000-0000-%012d", i)},
			},
			X509SVIDTTL: time.Hour,
			JWTSVIDTTL:  5 * time.Minute,
			DNSNames:    []string{fmt.Sprintf("pod-%d.shop.svc", i)},
			Hint:        "main",
		}
	}
	statuses, err := client.CreateEntries(ctx, wanted)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	made.Created = good(statuses, codes.OK)
	if statuses, err = client.CreateEntries(ctx, wanted[:1]); err != nil {
		return err
	}
	made.Similar = good(statuses, codes.AlreadyExists)
	listed, err := client.ListEntries(ctx)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	made.Listed = len(listed)
	made.Same = len(listed) > 0 && listed[0].JWTSVIDTTL == 5*time.Minute && listed[0].Hint == "main" && len(listed[0].Selectors) == 2
	ids := make([]string, len(listed))
	for i := range listed {
		ids[i] = listed[i].ID
		listed[i].Hint = "other"
	}
	if statuses, err = client.UpdateEntries(ctx, listed); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	made.Updated = good(statuses, codes.OK)
	if statuses, err = client.DeleteEntries(ctx, ids); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	made.Deleted = good(statuses, codes.OK)
	listed, err = client.ListEntries(ctx)
	made.Left = len(listed)
	return err
}

func federate(ctx context.Context, client spireapi.Client, made *report) error {
	other := spireapi.FederationRelationship{
		TrustDomain:           spiffeid.RequireTrustDomainFromString("other.test"),
		BundleEndpointURL:     "https://127.0.0.1:1/bundle",
		BundleEndpointProfile: spireapi.HTTPSWebProfile{},
	}
	statuses, err := client.CreateFederationRelationships(ctx, []spireapi.FederationRelationship{other})
	if err != nil || good(statuses, codes.OK) != 1 {
		return fmt.Errorf("federation create: %v %w", statuses, err)
	}
	listed, err := client.ListFederationRelationships(ctx)
	if err != nil {
		return err
	}
	for _, relationship := range listed {
		made.Federation = append(made.Federation, relationship.TrustDomain.Name())
	}
	statuses, err = client.DeleteFederationRelationships(ctx, []spiffeid.TrustDomain{other.TrustDomain})
	if err != nil || good(statuses, codes.OK) != 1 {
		return fmt.Errorf("federation delete: %v %w", statuses, err)
	}
	return nil
}

func webhook(ctx context.Context, client spireapi.Client, td spiffeid.TrustDomain, made *report) error {
	bundle, err := client.GetBundle(ctx)
	if err != nil {
		return err
	}
	made.Roots = len(bundle.X509Authorities())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	svid, err := client.MintX509SVID(ctx, spireapi.X509SVIDParams{
		Key:      key,
		ID:       spiffeid.RequireFromPath(td, "/spire-controller-manager-webhook"),
		DNSNames: []string{"spire-controller-manager-webhook-service.spire-server.svc"},
	})
	if err != nil {
		return fmt.Errorf("webhook: %w", err)
	}
	made.WebhookID = svid.ID.String()
	made.WebhookDNS = svid.CertChain[0].DNSNames
	return nil
}

func good(statuses []spireapi.Status, code codes.Code) int {
	count := 0
	for _, status := range statuses {
		if status.Code == code {
			count++
		}
	}
	return count
}
