// Apicheck asks the API server's own code whether it would take objects, without an API server: each is decoded
// strictly (an unknown or repeated field is a mistake), given its defaults, and validated as a create request is.
//
//	apicheck FILE...
//	apicheck -before OLD.yaml NEW.yaml
//
// With -before, the objects of OLD are there already, and those of NEW that have the same name are updates of them:
// what may not change, such as a DaemonSet's selector, is a mistake then.
//
// Kinds that no API server has by itself (custom resources) are named by -foreign, and only their apiVersion, kind and
// metadata are looked at.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/admissionregistration/install"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	policy "k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicy"
	binding "k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicybinding"
	"k8s.io/kubernetes/pkg/registry/apps/daemonset"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/resourcequota"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"
)

// strategy is what the API server does with a kind, between decoding and storing.
type strategy interface {
	rest.RESTCreateStrategy
	rest.RESTUpdateStrategy
}

var strategies = map[string]strategy{
	"ClusterRole":                      clusterrole.Strategy,
	"ClusterRoleBinding":               clusterrolebinding.Strategy,
	"ConfigMap":                        configmap.Strategy,
	"DaemonSet":                        daemonset.Strategy,
	"Namespace":                        namespace.Strategy,
	"NetworkPolicy":                    networkpolicy.Strategy,
	"ResourceQuota":                    resourcequota.Strategy,
	"Role":                             role.Strategy,
	"RoleBinding":                      rolebinding.Strategy,
	"ServiceAccount":                   serviceaccount.Strategy,
	"ValidatingAdmissionPolicy":        policy.NewStrategy(nil, nil),
	"ValidatingAdmissionPolicyBinding": binding.NewStrategy(nil, nil, nil),
}

// object is one that was decoded; name is "Kind namespace/name".
type object struct {
	name   string
	kind   string
	decode runtime.Object
}

func main() {
	before := flag.String("before", "", "a file with the objects that are there already")
	foreign := flag.String("foreign", "", "kinds of custom resources, joined by commas")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "apicheck: name files of objects")
		os.Exit(2)
	}
	custom := strings.Split(*foreign, ",")
	old := map[string]object{}
	mistakes := 0
	mistake := func(file string, err error) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
		mistakes++
	}
	if *before != "" {
		for _, found := range read(*before, custom, func(err error) { mistake(*before, err) }) {
			old[found.name] = found
		}
	}
	taken := 0
	for _, file := range flag.Args() {
		seen := map[string]bool{}
		for _, found := range read(file, custom, func(err error) { mistake(file, err) }) {
			if seen[found.name] {
				mistake(file, fmt.Errorf("%s is there twice", found.name))
			}
			seen[found.name] = true
			if err := take(found, old[found.name]); err != nil {
				mistake(file, fmt.Errorf("%s: %w", found.name, err))
				continue
			}
			taken++
		}
	}
	if taken == 0 && mistakes == 0 {
		mistake(flag.Arg(0), errors.New("no object"))
	}
	if mistakes > 0 {
		os.Exit(1)
	}
	fmt.Printf("apicheck: the API server would take these %d objects\n", taken)
}

// read decodes every object of a file.
func read(path string, custom []string, mistake func(error)) []object {
	file, err := os.Open(path)
	if err != nil {
		mistake(err)
		return nil
	}
	defer file.Close()
	var found []object
	documents := yaml.NewYAMLReader(bufio.NewReader(file))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			mistake(err)
			return found
		}
		one, err := decode(document, custom)
		if err != nil {
			mistake(err)
		} else if one != nil {
			found = append(found, *one)
		}
	}
}

// decode is nil for a document that says nothing.
func decode(document []byte, custom []string) (*object, error) {
	var whole map[string]any
	if err := yaml.Unmarshal(document, &whole); err != nil {
		return nil, err
	}
	if len(whole) == 0 {
		return nil, nil
	}
	head := unstructured.Unstructured{Object: whole}
	kind := head.GetKind()
	name := kind + " " + head.GetName()
	if head.GetNamespace() != "" {
		name = kind + " " + head.GetNamespace() + "/" + head.GetName()
	}
	if slices.Contains(custom, kind) {
		if head.GetAPIVersion() == "" || head.GetName() == "" {
			return nil, fmt.Errorf("%s has no apiVersion or no name", name)
		}
		return &object{name: name, kind: kind}, nil
	}
	scheme := legacyscheme.Scheme
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	// The version that is asked for is the internal one, which is what is validated; defaults are set on the way.
	decoded, _, err := legacyscheme.Codecs.DecoderToVersion(strict, runtime.InternalGroupVersioner).Decode(document, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &object{name: name, kind: kind, decode: decoded}, nil
}

// take is the API server's answer to a create request, or, with an object of that name, to an update.
func take(new, old object) error {
	if new.decode == nil {
		return nil
	}
	strategy, known := strategies[new.kind]
	if !known {
		return errors.New("apicheck does not know this kind; add its strategy to cmd/apicheck")
	}
	accessor, err := meta.Accessor(new.decode)
	if err != nil {
		return err
	}
	if strategy.NamespaceScoped() && accessor.GetNamespace() == "" {
		return errors.New("it names no namespace")
	}
	ctx := request.WithNamespace(context.Background(), accessor.GetNamespace())
	created, err := create(ctx, strategy, new.decode)
	if err != nil || old.decode == nil {
		return err
	}
	existing, err := create(ctx, strategy, old.decode)
	if err != nil {
		return fmt.Errorf("the one that is there: %w", err)
	}
	// As if both had been read from the store: an update is of one and the same object.
	from, err := meta.Accessor(existing)
	if err != nil {
		return err
	}
	to, err := meta.Accessor(created)
	if err != nil {
		return err
	}
	from.SetResourceVersion("1")
	to.SetResourceVersion("1")
	to.SetUID(from.GetUID())
	to.SetCreationTimestamp(from.GetCreationTimestamp())
	return rest.BeforeUpdate(strategy, ctx, created, existing)
}

// create is the object as it would be stored.
func create(ctx context.Context, strategy strategy, from runtime.Object) (runtime.Object, error) {
	created := from.DeepCopyObject()
	accessor, err := meta.Accessor(created)
	if err != nil {
		return nil, err
	}
	rest.FillObjectMetaSystemFields(accessor)
	return created, rest.BeforeCreate(strategy, ctx, created)
}
