package hcl

import (
	"path/filepath"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/terraform-config-inspect/tfconfig"
)

// The examples need providers, which are not to be had here: they are parsed, and what they hand to the module and take from it is there.
func TestExamplesFitTheModule(t *testing.T) {
	module, diagnostics := tfconfig.LoadModule(terraform)
	if diagnostics.HasErrors() {
		t.Fatal(diagnostics)
	}
	for name, v := range module.Variables {
		if v.Description == "" {
			t.Errorf("variable %s says nothing of itself", name)
		}
	}
	for name, o := range module.Outputs {
		if o.Description == "" || !o.Sensitive && name != "holds_token" {
			t.Errorf("output %s: description %q, sensitive %t", name, o.Description, o.Sensitive)
		}
	}
	if len(module.RequiredProviders) > 0 || len(module.ManagedResources) > 0 {
		t.Errorf("the module needs providers %v, expected none", module.RequiredProviders)
	}
	for example, resource := range map[string]string{"aws": "aws_instance", "gcp": "google_compute_instance", "azure": "azurerm_linux_virtual_machine"} {
		t.Run(example, func(t *testing.T) {
			dir := filepath.Join(terraform, "examples", example)
			config, diagnostics := tfconfig.LoadModule(dir)
			if diagnostics.HasErrors() {
				t.Fatal(diagnostics)
			}
			if _, there := config.ManagedResources[resource+".forum"]; !there || len(config.RequiredProviders) != 1 {
				t.Errorf("resources %v of providers %v, want %s.forum of one", config.ManagedResources, config.RequiredProviders, resource)
			}
			file, problems := hclparse.NewParser().ParseHCLFile(filepath.Join(dir, "main.tf"))
			if problems.HasErrors() {
				t.Fatal(problems)
			}
			calls, uses := 0, 0
			hclsyntax.VisitAll(file.Body.(*hclsyntax.Body), func(node hclsyntax.Node) hcl.Diagnostics {
				if block, ok := node.(*hclsyntax.Block); ok && block.Type == "module" {
					calls++
					for name := range block.Body.Attributes {
						if _, there := module.Variables[name]; !there && name != "source" {
							t.Errorf("it sets %s, which the module has not", name)
						}
					}
				}
				if expression, ok := node.(*hclsyntax.ScopeTraversalExpr); ok && expression.Traversal.RootName() == "module" {
					uses++
					output := expression.Traversal[2].(hcl.TraverseAttr).Name
					if _, there := module.Outputs[output]; !there {
						t.Errorf("it takes output %s, which the module has not", output)
					}
				}
				if expression, ok := node.(*hclsyntax.ScopeTraversalExpr); ok && expression.Traversal.RootName() == "var" {
					if name := expression.Traversal[1].(hcl.TraverseAttr).Name; config.Variables[name] == nil {
						t.Errorf("it uses variable %s, which it does not declare", name)
					}
				}
				return nil
			})
			if calls != 1 || uses == 0 {
				t.Errorf("it calls the module %d times and uses it %d times", calls, uses)
			}
			if source := config.ModuleCalls["wingman"].Source; source != "../.." {
				t.Errorf("its module is %s, want the one above", source)
			}
		})
	}
}
