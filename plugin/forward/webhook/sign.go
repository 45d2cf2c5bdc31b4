package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// newSigner makes the signer of Config.SigningSecret; nil for an empty one.
func newSigner(secret []byte) (*standardwebhooks.Webhook, error) {
	prefixed := bytes.HasPrefix(secret, []byte("whsec_"))
	switch {
	case len(secret) == 0:
		return nil, nil
	case bytes.HasPrefix(secret, []byte("whsk_")):
		return nil, errors.New("the signing secret begins with whsk_, a private key for asymmetric signatures: " +
			"only symmetric ones are made, with a secret that begins with whsec_")
	case prefixed && len(secret) == len("whsec_"):
		return nil, errors.New("the signing secret has no key behind whsec_")
	case !prefixed:
		return standardwebhooks.NewWebhookRaw(bytes.Clone(secret))
	}
	signer, err := standardwebhooks.NewWebhook(string(secret))
	if err != nil { // without its text, which is free to quote the secret
		return nil, errors.New("the signing secret is not base64 behind whsec_; remove the prefix if it is the key itself")
	}
	return signer, nil
}

// sign signs a request by Standard Webhooks 1.0, over
//
//	{webhook-id}.{webhook-timestamp}.{body}
//
// The id is the Idempotency-Key without its quotes. Full stops in it are escaped: the receiver could not tell where it
// ends, and the signature for one id, time and body would be good for another. The timestamp is that of the attempt, for
// receivers refuse what is minutes old.
func (x *exchange) sign(signer *standardwebhooks.Webhook, key, body []byte, now time.Time) error {
	id := strings.ReplaceAll(strings.Trim(string(key), `"`), ".", "%2E")
	signature, err := signer.Sign(id, now, body)
	if err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	x.req.Header.Set(standardwebhooks.HeaderWebhookID, id)
	x.req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	x.req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	return nil
}

// unsign removes a signature.
func (x *exchange) unsign() {
	for _, name := range []string{standardwebhooks.HeaderWebhookID, standardwebhooks.HeaderWebhookTimestamp, standardwebhooks.HeaderWebhookSignature} {
		x.req.Header.Del(name)
	}
}
