// Promcheck says whether Prometheus' operator would take PodMonitors and PrometheusRules, and whether Prometheus would
// understand their queries and durations: decoded strictly by the operator's own types, parsed by Prometheus' own
// parser. Objects of other kinds are passed over.
//
//	promcheck FILE...
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
)

func main() {
	mistakes, taken := 0, 0
	for _, file := range os.Args[1:] {
		for _, err := range check(file, &taken) {
			fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
			mistakes++
		}
	}
	if mistakes > 0 || len(os.Args) < 2 {
		os.Exit(1)
	}
	fmt.Printf("promcheck: Prometheus would take these %d objects\n", taken)
}

// check reads a file, and returns what is wrong in it.
func check(path string, taken *int) (wrong []error) {
	file, err := os.Open(path)
	if err != nil {
		return []error{err}
	}
	defer file.Close()
	documents := yaml.NewYAMLReader(bufio.NewReader(file))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return wrong
		}
		if err != nil {
			return append(wrong, err)
		}
		found, mistakes := judge(document)
		wrong = append(wrong, mistakes...)
		if found {
			*taken++
		}
	}
}

// judge is whether a document is of a kind that it knows, and what is wrong with it.
func judge(document []byte) (bool, []error) {
	text, err := yaml.ToJSON(document)
	if err != nil {
		return false, []error{err}
	}
	var head struct {
		Kind string `json:"kind"`
	}
	if err := json.UnmarshalCaseSensitivePreserveInts(text, &head); err != nil {
		return false, []error{err}
	}
	switch head.Kind {
	case "PodMonitor":
		var monitor monitoring.PodMonitor
		wrong := strictly(text, &monitor)
		for _, endpoint := range monitor.Spec.PodMetricsEndpoints {
			wrong = append(wrong, duration(string(endpoint.Interval))...)
		}
		return true, wrong
	case "PrometheusRule":
		var rule monitoring.PrometheusRule
		wrong := strictly(text, &rule)
		for _, group := range rule.Spec.Groups {
			for _, alert := range group.Rules {
				if _, err := parser.ParseExpr(alert.Expr.String()); err != nil {
					wrong = append(wrong, fmt.Errorf("%s: %w", alert.Alert, err))
				}
				if alert.For != nil {
					wrong = append(wrong, duration(string(*alert.For))...)
				}
			}
		}
		return true, wrong
	}
	return false, nil
}

func strictly(text []byte, into any) []error {
	wrong, err := json.UnmarshalStrict(text, into)
	if err != nil {
		return append(wrong, err)
	}
	return wrong
}

func duration(text string) []error {
	if _, err := model.ParseDuration(text); err != nil {
		return []error{err}
	}
	return nil
}
