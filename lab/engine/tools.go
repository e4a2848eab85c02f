//go:build tools

// Package engine pins the Pulumi command line, which toolchain.py builds from this module.
package engine

import _ "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
