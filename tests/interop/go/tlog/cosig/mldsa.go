// Package cosig has the ML-DSA-44 signatures of c2sp.org/tlog-cosignature as note verifiers and signers, on
// filippo.io/mldsa. It is written from the specification alone.
package cosig

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"filippo.io/mldsa"
	"filippo.io/torchwood"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/mod/sumdb/note"
)

const algorithm = 6

// Verifier is a note.Verifier for ML-DSA-44.
type Verifier struct {
	name string
	hash uint32
	key  *mldsa.PublicKey
}

func (v *Verifier) Name() string    { return v.name }
func (v *Verifier) KeyHash() uint32 { return v.hash }

// Verify reports whether sig is a signature of the checkpoint msg, with a time that is not zero.
func (v *Verifier) Verify(msg, sig []byte) bool {
	if len(sig) != 8+mldsa.MLDSA44SignatureSize || binary.BigEndian.Uint64(sig) == 0 {
		return false
	}
	signed, err := message(v.name, msg, binary.BigEndian.Uint64(sig))
	return err == nil && mldsa.Verify(v.key, signed, sig[8:], nil) == nil
}

// NewVerifier reads a vkey of type 0x06.
func NewVerifier(vkey string) (*Verifier, error) {
	parts := strings.SplitN(strings.TrimSpace(vkey), "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("not a verifier key")
	}
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(raw) == 0 || raw[0] != algorithm {
		return nil, errors.New("not an ML-DSA-44 verifier key")
	}
	key, err := mldsa.NewPublicKey(mldsa.MLDSA44(), raw[1:])
	if err != nil {
		return nil, err
	}
	hash := keyHash(parts[0], raw)
	if fmt.Sprintf("%08x", hash) != parts[1] {
		return nil, errors.New("the key ID is not that of the key")
	}
	return &Verifier{parts[0], hash, key}, nil
}

// Signer is a note.Signer for ML-DSA-44, with the time of signing.
type Signer struct {
	Verifier
	private *mldsa.PrivateKey
}

// NewSigner makes a key.
func NewSigner(name string) (*Signer, error) {
	private, err := mldsa.GenerateKey(mldsa.MLDSA44())
	if err != nil {
		return nil, err
	}
	public := private.PublicKey()
	return &Signer{Verifier{name, keyHash(name, typed(public)), public}, private}, nil
}

// Sign gives time || signature over the checkpoint msg.
func (s *Signer) Sign(msg []byte) ([]byte, error) {
	now := uint64(time.Now().Unix())
	signed, err := message(s.name, msg, now)
	if err != nil {
		return nil, err
	}
	sig, err := s.private.Sign(nil, signed, &mldsa.Options{})
	return append(binary.BigEndian.AppendUint64(nil, now), sig...), err
}

// VerifierKey is the signer's vkey.
func (s *Signer) VerifierKey() string {
	id := binary.BigEndian.AppendUint32(nil, s.hash)
	return s.name + "+" + hex.EncodeToString(id) + "+" + base64.StdEncoding.EncodeToString(typed(s.key))
}

func typed(key *mldsa.PublicKey) []byte { return append([]byte{algorithm}, key.Bytes()...) }

func keyHash(name string, typedKey []byte) uint32 {
	sum := sha256.Sum256(bytes.Join([][]byte{[]byte(name), typedKey}, []byte("\n")))
	return binary.BigEndian.Uint32(sum[:])
}

func message(cosigner string, msg []byte, at uint64) ([]byte, error) {
	head, err := torchwood.ParseCheckpoint(string(msg))
	if err != nil {
		return nil, err
	}
	b := &cryptobyte.Builder{}
	b.AddBytes([]byte("subtree/v1\n\x00"))
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(cosigner)) })
	b.AddUint64(at)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(head.Origin)) })
	b.AddUint64(0)
	b.AddUint64(uint64(head.N))
	b.AddBytes(head.Hash[:])
	return b.Bytes()
}

var (
	_ note.Verifier = &Verifier{}
	_ note.Signer   = &Signer{}
)
