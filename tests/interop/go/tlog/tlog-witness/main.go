// A witness that shares no code with ours: c2sp.org/tlog-witness on torchwood's cosigner and x/mod's proofs.
//
//	tlog-witness -vkey FILE -name NAME [-lie MODE]
//
// It watches the log of the Ed25519 vkey in FILE, keeps what it signed in memory, and prints one JSON line: url, vkeys.
// Every request is one JSON line more: status, size. MODE makes it lie:
//
//	forged     a cosignature that does not verify, under the right name and key ID
//	wrong-key  cosignatures by keys that nobody was told of
//	older      it never remembers what it signed
//	ahead      it says it has signed a larger tree
//	refuse     it finds every tree inconsistent
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"eastwest.test/interop/tlog/cosig"
)

type witness struct {
	mu      sync.Mutex
	log     note.Verifier
	signers []note.Signer
	strange []note.Signer
	lie     string
	size    int64
	root    tlog.Hash
	out     *json.Encoder
}

func main() {
	keyFile := flag.String("vkey", "", "file with the log's verifier key")
	name := flag.String("name", "witness.example/go", "the witness's name")
	lie := flag.String("lie", "", "how to lie")
	flag.Parse()
	text, err := os.ReadFile(*keyFile)
	check(err)
	verifier, err := note.NewVerifier(strings.TrimSpace(string(text)))
	check(err)
	w := &witness{log: verifier, lie: *lie, out: json.NewEncoder(os.Stdout)}
	var vkeys []string
	w.signers, vkeys = keys(*name)
	w.strange, _ = keys(*name)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	check(w.out.Encode(map[string]any{"url": "http://" + listener.Addr().String() + "/", "vkeys": vkeys}))
	http.HandleFunc("POST /add-checkpoint", w.serve)
	log.Fatal(http.Serve(listener, nil))
}

func keys(name string) ([]note.Signer, []string) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	check(err)
	classical, err := torchwood.NewCosignatureSigner(name, private)
	check(err)
	quantum, err := cosig.NewSigner(name)
	check(err)
	return []note.Signer{classical, quantum}, []string{classical.Verifier().String(), quantum.VerifierKey()}
}

func (w *witness) serve(out http.ResponseWriter, request *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	body, err := io.ReadAll(io.LimitReader(request.Body, 1<<20))
	check(err)
	status, answer := w.judge(body)
	if status == http.StatusConflict {
		out.Header().Set("Content-Type", "text/x.tlog.size")
	}
	out.WriteHeader(status)
	_, _ = io.WriteString(out, answer)
	check(w.out.Encode(map[string]any{"status": status, "size": w.size}))
}

func (w *witness) judge(body []byte) (int, string) {
	top, signed, found := bytes.Cut(body, []byte("\n\n"))
	lines := strings.Split(string(top), "\n")
	old, err := strconv.ParseInt(strings.TrimPrefix(lines[0], "old "), 10, 64)
	if !found || err != nil {
		return http.StatusBadRequest, "malformed\n"
	}
	var proof tlog.TreeProof
	for _, line := range lines[1:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return http.StatusBadRequest, "malformed hash\n"
		}
		proof = append(proof, hash)
	}
	opened, err := note.Open(signed, note.VerifierList(w.log))
	if err != nil {
		return http.StatusForbidden, err.Error() + "\n"
	}
	head, err := torchwood.ParseCheckpoint(opened.Text)
	if err != nil {
		return http.StatusBadRequest, err.Error() + "\n"
	}
	if head.Origin != w.log.Name() {
		return http.StatusNotFound, "unknown log\n"
	}
	if old > head.N {
		return http.StatusBadRequest, "old size is larger\n"
	}
	switch w.lie {
	case "ahead":
		return http.StatusConflict, fmt.Sprintf("%d\n", head.N+1000)
	case "refuse":
		return http.StatusUnprocessableEntity, "inconsistent\n"
	case "older":
		if old != 0 {
			return http.StatusConflict, "0\n"
		}
		w.size = 0
	}
	if old != w.size {
		return http.StatusConflict, fmt.Sprintf("%d\n", w.size)
	}
	switch {
	case w.size == 0 && len(proof) > 0:
		return http.StatusUnprocessableEntity, "the proof should be empty\n"
	case w.size == head.N && w.size > 0 && w.root != head.Hash:
		return http.StatusUnprocessableEntity, "another root\n"
	case w.size > 0 && w.size < head.N:
		if err := tlog.CheckTree(proof, head.N, head.Hash, w.size, w.root); err != nil {
			return http.StatusUnprocessableEntity, err.Error() + "\n"
		}
	}
	w.size, w.root = head.N, head.Hash
	return http.StatusOK, w.cosign(opened.Text)
}

func (w *witness) cosign(text string) string {
	signers := w.signers
	if w.lie == "wrong-key" {
		signers = w.strange
	}
	signed, err := note.Sign(&note.Note{Text: text}, signers...)
	check(err)
	lines := strings.TrimPrefix(string(signed), text+"\n")
	if w.lie == "forged" {
		// One character in the middle of the signature.
		at := strings.Index(lines, "\n") - 20
		other := byte('A')
		if lines[at] == other {
			other = 'B'
		}
		lines = lines[:at] + string(other) + lines[at+1:]
	}
	return lines
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
