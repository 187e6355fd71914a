// Builds judges of what the authority signs: zlint over certificates and CRLs, and a stock OpenID Connect verifier.
module eastwest.test/interop/pki

go 1.26.0

require (
	github.com/coreos/go-oidc/v3 v3.11.0
	github.com/zmap/zcrypto v0.0.0-20250129210703-03c45d0bae98
	github.com/zmap/zlint/v3 v3.6.8
)

require (
	github.com/go-jose/go-jose/v4 v4.0.2 // indirect
	github.com/pelletier/go-toml v1.9.5 // indirect
	github.com/weppos/publicsuffix-go v0.40.3-0.20250127173806-e489a31678ca // indirect
	golang.org/x/crypto v0.36.0 // indirect
	golang.org/x/net v0.38.0 // indirect
	golang.org/x/oauth2 v0.21.0 // indirect
	golang.org/x/text v0.23.0 // indirect
)
