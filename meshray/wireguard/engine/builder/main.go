// The builder builds meshray-engine: it applies wireguard.patch to the pinned wireguard-go, adds _device/, and runs Go.
//
//	go -C builder run . -go go [-arch arm64] build -trimpath -o /tmp/meshray-engine .
//	go -C builder run . -go go test [-race] [-path inline|parallel] [-unpatched] [-run TESTS] engine device conn tun
//
// The library's source is not part of this repository. The module comes from Go's module cache, its checksum is
// verified against go.sum, and the patched files exist only in a temporary folder, which the compiler sees through an
// overlay in place of the originals. So every build has the same paths, and no build leaves anything behind.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"
)

const (
	library = "golang.zx2c4.com/wireguard"
	patch   = "wireguard.patch"
	added   = "_device"
	// place is where the compiler sees the patched library, inside the engine's folder. It does not exist on disk.
	place = "_wireguard"
)

func main() {
	goProgram := flag.String("go", "go", "the Go `program` that builds")
	engine := flag.String("engine", "..", "the `folder` of the engine")
	arch := flag.String("arch", "", "the `GOARCH` of the engine; default: Go's choice")
	flag.Parse()
	if err := run(*goProgram, *engine, *arch, flag.Args()); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, "engine: "+err.Error())
		}
		os.Exit(1)
	}
}

func run(goProgram, engine, arch string, words []string) error {
	if len(words) == 0 || (words[0] != "build" && words[0] != "test") {
		return errors.New("say build or test, and arguments")
	}
	folder, err := filepath.Abs(engine)
	if err != nil {
		return err
	}
	temporary, err := os.MkdirTemp("", "meshray-engine-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	b := &builder{program: goProgram, engine: folder, arch: arch, temporary: temporary}
	if words[0] == "test" {
		return b.test(words[1:])
	}
	flags, err := b.prepare(true, false)
	if err != nil {
		return err
	}
	return b.run(folder, append(append([]string{"build"}, flags...), words[1:]...)...)
}

// builder runs Go on the engine and the patched library.
type builder struct {
	program, engine, arch, temporary string
}

// run runs Go in a folder.
func (b *builder) run(folder string, arguments ...string) error {
	command := exec.Command(b.program, arguments...)
	command.Dir, command.Env = folder, b.environment()
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command.Run()
}

func (b *builder) environment() []string {
	environ := append(os.Environ(), "GOWORK=off")
	if b.arch != "" {
		environ = append(environ, "GOARCH="+b.arch)
	}
	return environ
}

// module is what `go mod download` says of the library.
type module struct{ Dir, Version, Error string }

// find returns the library in the module cache, downloaded if needed, and unchanged since.
func (b *builder) find() (module, error) {
	var found module
	output, err := b.output("mod", "download", "-json", library)
	if json.Unmarshal(output, &found) == nil && found.Error != "" {
		return found, fmt.Errorf("cannot get %s: %s", library, found.Error)
	}
	if err != nil {
		return found, fmt.Errorf("cannot get %s: %w", library, err)
	}
	if _, err := b.output("mod", "verify"); err != nil {
		return found, fmt.Errorf("the module cache does not agree with go.sum: %w", err)
	}
	return found, nil
}

func (b *builder) output(arguments ...string) ([]byte, error) {
	command := exec.Command(b.program, arguments...)
	command.Dir, command.Env = b.engine, b.environment()
	var failure bytes.Buffer
	command.Stderr = &failure
	output, err := command.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.ReplaceAll(strings.TrimSpace(failure.String()), "\n", "; "))
	}
	return output, err
}

// prepare returns the flags with which Go sees the library at its place.
//
// Args:
//
//	patched: with the patch and the added files; else as it was released.
//	tests: with the added tests as well.
func (b *builder) prepare(patched, tests bool) ([]string, error) {
	found, err := b.find()
	if err != nil {
		return nil, err
	}
	replaced := map[string]string{}
	err = filepath.WalkDir(found.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			var name string
			if name, err = filepath.Rel(found.Dir, path); err == nil {
				replaced[filepath.Join(b.engine, place, name)] = path
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if patched {
		if err := b.applyPatch(found, replaced); err != nil {
			return nil, err
		}
	}
	if err := b.addFiles(replaced, patched, tests); err != nil {
		return nil, err
	}
	return b.writeFlags(replaced)
}

// applyPatch puts the patched files in place of the library's.
func (b *builder) applyPatch(found module, replaced map[string]string) error {
	text, err := os.Open(filepath.Join(b.engine, patch))
	if err != nil {
		return err
	}
	defer text.Close()
	files, _, err := gitdiff.Parse(text)
	if err != nil {
		return fmt.Errorf("%s is not a patch: %w", patch, err)
	}
	for number, file := range files {
		fails := func(err error) error {
			return fmt.Errorf("%s does not apply to %s of %s %s: %w", patch, file.OldName, library, found.Version, err)
		}
		if file.IsNew || file.IsDelete || file.IsRename {
			return fails(errors.New("it may only change files"))
		}
		source, err := os.Open(filepath.Join(found.Dir, filepath.FromSlash(file.OldName)))
		if err != nil {
			return fails(errors.New("the library has no such file"))
		}
		var patched bytes.Buffer
		err = gitdiff.Apply(&patched, source, file)
		source.Close()
		var conflict *gitdiff.ApplyError
		if errors.As(err, &conflict) {
			return fails(fmt.Errorf("hunk %d, line %d: %w", conflict.Fragment, conflict.Line, conflict.Unwrap()))
		}
		if err != nil {
			return fails(err)
		}
		path := filepath.Join(b.temporary, fmt.Sprintf("%d-%s", number, filepath.Base(file.NewName)))
		if err := os.WriteFile(path, patched.Bytes(), 0o600); err != nil {
			return err
		}
		replaced[filepath.Join(b.engine, place, filepath.FromSlash(file.NewName))] = path
	}
	return nil
}

// addFiles puts meshray's own files into the library's package device. Those named patched_* need the patch.
func (b *builder) addFiles(replaced map[string]string, patched, tests bool) error {
	names, err := filepath.Glob(filepath.Join(b.engine, added, "*.go"))
	if err != nil {
		return err
	}
	for _, path := range names {
		name := filepath.Base(path)
		isTest := strings.HasSuffix(name, "_test.go")
		needsPatch := !isTest || strings.HasPrefix(name, "patched_")
		if (isTest && !tests) || (needsPatch && !patched) {
			continue
		}
		at := filepath.Join(b.engine, place, "device", name)
		if _, exists := replaced[at]; exists {
			return fmt.Errorf("%s now has a file device/%s itself", library, name)
		}
		replaced[at] = path
	}
	return nil
}

// writeFlags writes a copy of go.mod that names the library's place, and the overlay.
func (b *builder) writeFlags(replaced map[string]string) ([]string, error) {
	modFile := filepath.Join(b.temporary, "go.mod")
	text, err := os.ReadFile(filepath.Join(b.engine, "go.mod"))
	if err != nil {
		return nil, err
	}
	sums, err := os.ReadFile(filepath.Join(b.engine, "go.sum"))
	if err != nil {
		return nil, err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replaced})
	if err != nil {
		return nil, err
	}
	overlayFile := filepath.Join(b.temporary, "overlay.json")
	return []string{"-modfile", modFile, "-overlay", overlayFile}, errors.Join(
		os.WriteFile(modFile, fmt.Appendf(text, "\nreplace %s => ./%s\n", library, place), 0o600),
		os.WriteFile(filepath.Join(b.temporary, "go.sum"), sums, 0o600),
		os.WriteFile(overlayFile, overlay, 0o600),
	)
}

// test runs the tests of the engine, and the library's with meshray's additional ones, by their packages' names.
func (b *builder) test(words []string) error {
	flags := flag.NewFlagSet("test", flag.ContinueOnError)
	unpatched := flags.Bool("unpatched", false, "test the library as it was released")
	path := flags.String("path", "inline", "the data path of the tests: `inline` or parallel")
	race := flags.Bool("race", false, "detect data races; needs a C compiler")
	tests := flags.String("run", "", "only tests that match this `expression`")
	fuzz := flags.String("fuzz", "", "the fuzzer that matches this `expression`, with -fuzztime")
	fuzzTime := flags.String("fuzztime", "10s", "how long")
	verbose := flags.Bool("v", false, "list the tests")
	if err := flags.Parse(words); err != nil {
		return err
	}
	build, err := b.prepare(!*unpatched, true)
	if err != nil {
		return err
	}
	// The packages' folders exist only in the overlay, so the tests are built and then run in the module's own.
	found, err := b.find()
	if err != nil {
		return err
	}
	if *race {
		build = append(build, "-race")
	}
	for _, name := range flags.Args() {
		program := filepath.Join(b.temporary, name+".test")
		of, folder := library+"/"+name, filepath.Join(found.Dir, name)
		if name == "engine" {
			of, folder = ".", b.engine
		}
		// Vet changes into the packages' folders, too.
		compile := append([]string{"test", "-c", "-vet=off", "-o", program}, build...)
		if err := b.run(b.engine, append(compile, of)...); err != nil {
			return err
		}
		arguments := []string{"-test.timeout=5m", "-test.run=" + *tests}
		if *verbose {
			arguments = append(arguments, "-test.v")
		}
		if *fuzz != "" {
			arguments = append(arguments, "-test.fuzz="+*fuzz, "-test.fuzztime="+*fuzzTime, "-test.fuzzcachedir="+b.temporary)
		}
		command := exec.Command(program, arguments...)
		command.Dir, command.Env = folder, append(b.environment(), "MESHRAY_DATA_PATH="+*path)
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
		fmt.Printf("%s (%s%s)\n", name, *path, map[bool]string{true: ", unpatched"}[*unpatched])
		if err := command.Run(); err != nil {
			return err
		}
	}
	return nil
}
