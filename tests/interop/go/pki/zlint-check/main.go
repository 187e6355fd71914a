// Lints certificates and CRLs against RFC 5280, and against no rule of public web PKI.
//
//	zlint-check FILE...
//
// Each file is one certificate or CRL in DER; a name that ends in .crl is a CRL. Prints one JSON object: for each file
// what zlint found that is not in order, as {"lint": {"result": "error|warn|info|notice|fatal", "details": "..."}},
// and under "_lints" how many lints were applied to it. Exit status 1 when a file cannot be read at all.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

type finding struct {
	Result  string `json:"result"`
	Details string `json:"details"`
}

func main() {
	rules, err := lint.GlobalRegistry().Filter(lint.FilterOptions{IncludeSources: lint.SourceList{lint.RFC5280}})
	if err != nil {
		fail(err)
	}
	report := map[string]map[string]any{}
	for _, name := range os.Args[1:] {
		found, err := judge(name, rules)
		if err != nil {
			fail(fmt.Errorf("%s: %w", name, err))
		}
		report[name] = found
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		fail(err)
	}
}

func judge(name string, rules lint.Registry) (map[string]any, error) {
	der, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var results *zlint.ResultSet
	if strings.HasSuffix(name, ".crl") {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, err
		}
		results = zlint.LintRevocationListEx(list, rules)
	} else {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		results = zlint.LintCertificateEx(certificate, rules)
	}
	found := map[string]any{}
	applied := 0
	for rule, result := range results.Results {
		if result.Status > lint.NE {
			applied++
		}
		if result.Status > lint.Pass {
			found[rule] = finding{result.Status.String(), result.Details}
		}
	}
	found["_lints"] = applied
	return found, nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "zlint-check:", err)
	os.Exit(1)
}
