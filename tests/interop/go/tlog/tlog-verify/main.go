// A judge of transparency logs that shares no code with ours: x/mod's signed notes and Merkle trees, torchwood's tiles.
//
//	tlog-verify -vkey FILE [-mldsa FILE] [-witness FILE]... [-entries] [-against FILE] DIR-OR-URL
//
// It opens the checkpoint with the verifier key, reads every entry and checks its hash against the tree, proves and
// checks the first, middle and last entry, and prints one JSON line: origin, size, root (base64). With -entries each
// entry comes first, a line each. With -against, the checkpoint in FILE (an older one of the same log) must be a
// prefix of this log. With -mldsa, the ML-DSA-44 key in FILE must have signed too; with -witness, the witness whose
// vkey is in FILE (Ed25519 or ML-DSA-44) must have cosigned. Anything that does not hold is an error on stderr and exit status 1.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"eastwest.test/interop/tlog/cosig"
)

func main() {
	keyFile := flag.String("vkey", "", "file with the log's verifier key")
	var others []string
	add := func(file string) error { others = append(others, file); return nil }
	flag.Func("mldsa", "file with the log's ML-DSA-44 verifier key", add)
	flag.Func("witness", "file with a witness's verifier key", add)
	entries := flag.Bool("entries", false, "print every entry")
	against := flag.String("against", "", "file with an older checkpoint of this log")
	flag.Parse()
	if err := run(context.Background(), *keyFile, *against, others, *entries, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "tlog-verify:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, keyFile, against string, others []string, entries bool, args []string) error {
	if keyFile == "" || len(args) != 1 {
		return errors.New("usage: tlog-verify -vkey FILE [-entries] [-against FILE] DIR-OR-URL")
	}
	verifier, err := readVerifier(keyFile)
	if err != nil {
		return err
	}
	tiles, err := open(args[0])
	if err != nil {
		return err
	}
	signed, err := tiles.ReadEndpoint(ctx, "checkpoint")
	if err != nil {
		return err
	}
	head, err := openCheckpoint(signed, verifier)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	for _, file := range others {
		if err := checkCosigner(signed, file); err != nil {
			return fmt.Errorf("checkpoint: %s: %w", file, err)
		}
	}
	if err := checkEntries(ctx, tiles, head.Tree, entries); err != nil {
		return err
	}
	if against != "" {
		if err := checkPrefix(ctx, tiles, head.Tree, against, verifier); err != nil {
			return fmt.Errorf("against %s: %w", against, err)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"origin": head.Origin, "size": head.N, "root": head.Hash.String(),
	})
}

func readVerifier(file string) (note.Verifier, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return note.NewVerifier(strings.TrimSpace(string(text)))
}

func checkCosigner(signed []byte, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	vkey := strings.TrimSpace(string(text))
	var verifier note.Verifier
	if verifier, err = cosig.NewVerifier(vkey); err != nil {
		if verifier, err = torchwood.NewCosignatureVerifier(vkey); err != nil {
			return err
		}
	}
	_, err = note.Open(signed, note.VerifierList(verifier))
	return err
}

func open(place string) (torchwood.TileReader, error) {
	if strings.HasPrefix(place, "http://") || strings.HasPrefix(place, "https://") {
		return torchwood.NewTileFetcher(place)
	}
	return torchwood.NewTileFS(os.DirFS(place))
}

func openCheckpoint(signed []byte, verifier note.Verifier) (torchwood.Checkpoint, error) {
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return torchwood.Checkpoint{}, err
	}
	head, err := torchwood.ParseCheckpoint(opened.Text)
	if err == nil && head.Origin != verifier.Name() {
		err = fmt.Errorf("origin %q is not the key's name %q", head.Origin, verifier.Name())
	}
	return head, err
}

func checkEntries(ctx context.Context, tiles torchwood.TileReader, tree tlog.Tree, show bool) error {
	client, err := torchwood.NewClient(tiles)
	if err != nil {
		return err
	}
	seen := int64(0)
	for _, entry := range client.AllEntries(ctx, tree, 0) {
		if seen++; show {
			fmt.Println(string(entry))
		}
	}
	if err := client.Err(); err != nil {
		return err
	}
	if seen != tree.N {
		return fmt.Errorf("%d entries of %d", seen, tree.N)
	}
	if tree.N == 0 {
		return nil
	}
	for _, index := range []int64{0, tree.N / 2, tree.N - 1} {
		entry, proof, err := client.Entry(ctx, tree, index)
		if err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entry)); err != nil {
			return fmt.Errorf("inclusion of entry %d: %w", index, err)
		}
	}
	return nil
}

func checkPrefix(ctx context.Context, tiles torchwood.TileReader, tree tlog.Tree, file string, verifier note.Verifier) error {
	signed, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	older, err := openCheckpoint(signed, verifier)
	if err != nil {
		return err
	}
	if older.N > tree.N {
		return fmt.Errorf("the log shrank from %d to %d entries", older.N, tree.N)
	}
	if older.N == 0 {
		return nil
	}
	proof, err := tlog.ProveTree(tree.N, older.N, torchwood.TileHashReaderWithContext(ctx, tree, tiles))
	if err != nil {
		return err
	}
	return tlog.CheckTree(proof, tree.N, tree.Hash, older.N, older.Hash)
}
