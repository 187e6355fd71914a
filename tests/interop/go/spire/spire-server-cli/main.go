// The `spire-server` command line without the server behind `run`: the commands are SPIRE's own, only this
// registration is ours, because one dependency of the server's cloud plug-ins is not to be had everywhere.
package main

import (
	"fmt"
	"os"

	"github.com/mitchellh/cli"
	"github.com/spiffe/spire/cmd/spire-server/cli/agent"
	"github.com/spiffe/spire/cmd/spire-server/cli/bundle"
	"github.com/spiffe/spire/cmd/spire-server/cli/entry"
	"github.com/spiffe/spire/cmd/spire-server/cli/federation"
	"github.com/spiffe/spire/cmd/spire-server/cli/healthcheck"
	"github.com/spiffe/spire/cmd/spire-server/cli/jwt"
	authorityjwt "github.com/spiffe/spire/cmd/spire-server/cli/localauthority/jwt"
	authorityx509 "github.com/spiffe/spire/cmd/spire-server/cli/localauthority/x509"
	"github.com/spiffe/spire/cmd/spire-server/cli/logger"
	"github.com/spiffe/spire/cmd/spire-server/cli/token"
	"github.com/spiffe/spire/cmd/spire-server/cli/x509"
	"github.com/spiffe/spire/pkg/common/version"
)

func main() {
	program := cli.NewCLI("spire-server", version.Version())
	program.Args = os.Args[1:]
	program.Commands = commands()
	status, err := program.Run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(status)
}

func commands() map[string]cli.CommandFactory {
	constructors := map[string]func() cli.Command{
		"agent ban":                    agent.NewBanCommand,
		"agent count":                  agent.NewCountCommand,
		"agent evict":                  agent.NewEvictCommand,
		"agent list":                   agent.NewListCommand,
		"agent purge":                  agent.NewPurgeCommand,
		"agent show":                   agent.NewShowCommand,
		"bundle count":                 bundle.NewCountCommand,
		"bundle delete":                bundle.NewDeleteCommand,
		"bundle list":                  bundle.NewListCommand,
		"bundle set":                   bundle.NewSetCommand,
		"bundle show":                  bundle.NewShowCommand,
		"entry count":                  entry.NewCountCommand,
		"entry create":                 entry.NewCreateCommand,
		"entry delete":                 entry.NewDeleteCommand,
		"entry show":                   entry.NewShowCommand,
		"entry update":                 entry.NewUpdateCommand,
		"federation create":            federation.NewCreateCommand,
		"federation delete":            federation.NewDeleteCommand,
		"federation list":              federation.NewListCommand,
		"federation refresh":           federation.NewRefreshCommand,
		"federation show":              federation.NewShowCommand,
		"federation update":            federation.NewUpdateCommand,
		"healthcheck":                  healthcheck.NewHealthCheckCommand,
		"jwt mint":                     jwt.NewMintCommand,
		"localauthority jwt activate":  authorityjwt.NewJWTActivateCommand,
		"localauthority jwt prepare":   authorityjwt.NewJWTPrepareCommand,
		"localauthority jwt revoke":    authorityjwt.NewJWTRevokeCommand,
		"localauthority jwt show":      authorityjwt.NewJWTShowCommand,
		"localauthority jwt taint":     authorityjwt.NewJWTTaintCommand,
		"localauthority x509 activate": authorityx509.NewX509ActivateCommand,
		"localauthority x509 prepare":  authorityx509.NewX509PrepareCommand,
		"localauthority x509 revoke":   authorityx509.NewX509RevokeCommand,
		"localauthority x509 show":     authorityx509.NewX509ShowCommand,
		"localauthority x509 taint":    authorityx509.NewX509TaintCommand,
		"logger get":                   logger.NewGetCommand,
		"logger reset":                 logger.NewResetCommand,
		"logger set":                   logger.NewSetCommand,
		"token generate":               token.NewGenerateCommand,
		"x509 mint":                    x509.NewMintCommand,
	}
	factories := make(map[string]cli.CommandFactory, len(constructors))
	for name, construct := range constructors {
		factories[name] = func() (cli.Command, error) { return construct(), nil }
	}
	return factories
}
