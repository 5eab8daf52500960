"""A coordinator's word for a model: signed with the key of its certificate, checked against its authority.

TLS says from whom a message came; the signature says who stands for a model, wherever it lies and whoever passes it on.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from manyeyes.errors import UpdateRefusedError
from manyeyes.federation.form import ModelForm
from manyeyes.federation.keys import SERVER, read_certificate, read_server_key
from manyeyes.federation.messages import Signature
from manyeyes.weights import Weights

__all__ = ["Signer", "check_signature"]

_KIND = "manyeyes model 2"
# Clocks of small machines are wrong by hours, seldom by more.
_CLOCKS_APART = timedelta(days=1)


class Signer:
    """Signs models for a coordinator.

    Args:
        state: the coordinator's state folder.

    Raises:
        ConfigError: it holds no certificate.
        ResourceError: its key is open to others.
    """

    def __init__(self, state: Path) -> None:
        self._key = read_server_key(state / SERVER)
        certificate = read_certificate(state / SERVER)
        self._certificate = certificate.public_bytes(serialization.Encoding.PEM).decode()

    def sign(self, form: ModelForm, round: int, weights: Weights, *, now: datetime | None = None) -> Signature:
        """For the weights of a run after so many rounds; `now` is for tests."""
        signed = (now or datetime.now(UTC)).timestamp()
        value = self._key.sign(_statement(form, round, weights, signed), ec.ECDSA(hashes.SHA256()))
        return Signature(certificate=self._certificate, signed=signed, value=base64.b64encode(value).decode())


def check_signature(
    signature: Signature,
    form: ModelForm,
    round: int,
    weights: Weights,
    authority: Path,
    *,
    now: datetime | None = None,
) -> None:
    """Refuse a model for which no coordinator of this authority stands.

    Args:
        signature: that came with it.
        form, round, weights: what it is said to be of.
        authority: file of the authority's certificate, ca.crt.
        now: for tests.

    Raises:
        UpdateRefusedError: the certificate is not of the authority, or one of the two is not valid now; or the
            signature is of something else, or of a time that has not come.
        ConfigError: the authority's certificate cannot be read.
    """
    issuer, now = read_certificate(authority), now or datetime.now(UTC)
    try:
        certificate = x509.load_pem_x509_certificate(signature.certificate.encode())
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise UpdateRefusedError(
            "the model is signed by somebody whom this site's authority does not know",
            cure="If the coordinator has a new authority, ask its operator for ca.crt (`authority` in node.yaml).",
        ) from error
    if not _is_valid(issuer, now):
        raise UpdateRefusedError(
            "the certificate of this site's authority is not valid now",
            cure="Ask the coordinator's operator for a new ca.crt (`authority` in node.yaml), and look at the clock.",
        )
    if not _is_valid(certificate, now):
        raise UpdateRefusedError(
            "the certificate that the model is signed with is not valid now", cure="manyeyes coordinator renew"
        )
    if signature.signed > (now + _CLOCKS_APART).timestamp():
        raise UpdateRefusedError(
            "the model is signed for a time that has not come yet",
            cure="Set the clocks of the coordinator and of this machine.",
        )
    key = certificate.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("another kind of key")
        value = base64.b64decode(signature.value, validate=True)
        key.verify(value, _statement(form, round, weights, signature.signed), ec.ECDSA(hashes.SHA256()))
    except (ValueError, binascii.Error, InvalidSignature) as error:
        raise UpdateRefusedError(
            "the model is not what was signed: it was changed on its way", cure="Ask for it to be published again."
        ) from error


def _is_valid(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _statement(form: ModelForm, round: int, weights: Weights, signed: float) -> bytes:
    # Sorted, and with the hash of every name, shape and number. The time shows what is handed over once more.
    said = {
        "kind": _KIND,
        **form.model_dump(mode="json"),
        "round": round,
        "weights": weights.value_hash,
        "signed": signed,
    }
    return json.dumps(said, sort_keys=True).encode()
