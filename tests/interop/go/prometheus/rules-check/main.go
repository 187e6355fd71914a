// rules-check reads a file of alert rules as Prometheus itself does, and PromQL expressions, one a line, from standard
// input. It prints what is wrong and ends with status 1, or prints how many rules and expressions it has read.
package main

import (
	"bufio"
	"fmt"
	"os"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	groups, wrong := rulefmt.ParseFile(os.Args[1], false, model.LegacyValidation)
	rules, expressions := 0, 0
	if groups != nil {
		for _, group := range groups.Groups {
			rules += len(group.Rules)
		}
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		expressions++
		if _, err := parser.ParseExpr(lines.Text()); err != nil {
			wrong = append(wrong, fmt.Errorf("%q: %w", lines.Text(), err))
		}
	}
	for _, err := range wrong {
		fmt.Fprintln(os.Stderr, err)
	}
	if len(wrong) > 0 {
		os.Exit(1)
	}
	fmt.Printf("%d rules, %d expressions\n", rules, expressions)
}
