from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from manyeyes.errors import ProtocolError, UpdateRefusedError
from manyeyes.federation.form import ModelForm
from manyeyes.federation.keys import AUTHORITY, make_authority, read_certificate, renew_server
from manyeyes.federation.messages import PublishPlan, publish_request, read_publish_request
from manyeyes.federation.signature import Signer, check_signature
from manyeyes.weights import Weights

FORM = ModelForm(architecture="yolov8n/cv3=2", names=("person", "car"), imgsz=128, run="first")
WEIGHTS = Weights({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, np.float32)})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    make_authority(tmp_path / "coordinator", ["localhost"])
    return tmp_path / "coordinator"


def test_what_was_signed_is_believed_even_after_the_certificate_is_renewed(state: Path) -> None:
    signature = Signer(state).sign(FORM, 7, WEIGHTS)
    check_signature(signature, FORM, 7, WEIGHTS, state / AUTHORITY)
    renew_server(state, ["localhost"])
    check_signature(signature, FORM, 7, WEIGHTS, state / AUTHORITY)
    check_signature(Signer(state).sign(FORM, 7, WEIGHTS), FORM, 7, WEIGHTS, state / AUTHORITY)


def test_nothing_of_it_can_be_changed(state: Path) -> None:
    signature = Signer(state).sign(FORM, 7, WEIGHTS)
    one_bit = Weights({**WEIGHTS, "b": np.nextafter(WEIGHTS["b"], np.float32(2))})
    changed = [
        (FORM, 8, WEIGHTS),
        (FORM, 7, one_bit),
        (FORM.model_copy(update={"run": "second"}), 7, WEIGHTS),
        (FORM.model_copy(update={"names": ("car", "person")}), 7, WEIGHTS),
    ]
    for form, round, weights in changed:
        with pytest.raises(UpdateRefusedError, match="not what was signed"):
            check_signature(signature, form, round, weights, state / AUTHORITY)
    for value in ("", "no base64!", signature.value[:-8]):
        changed_value = signature.model_copy(update={"value": value})
        with pytest.raises(UpdateRefusedError, match="not what was signed"):
            check_signature(changed_value, FORM, 7, WEIGHTS, state / AUTHORITY)
    later = signature.model_copy(update={"signed": signature.signed + 1})
    with pytest.raises(UpdateRefusedError, match="not what was signed"):
        check_signature(later, FORM, 7, WEIGHTS, state / AUTHORITY)


def test_nobody_else_can_sign(state: Path, tmp_path: Path) -> None:
    make_authority(tmp_path / "other", ["localhost"])
    forged = Signer(tmp_path / "other").sign(FORM, 7, WEIGHTS)
    with pytest.raises(UpdateRefusedError, match="authority does not know"):
        check_signature(forged, FORM, 7, WEIGHTS, state / AUTHORITY)
    # The authority's own certificate is no coordinator's, and rubbish is no certificate.
    for certificate in ((tmp_path / "other" / AUTHORITY).read_text(), "-----BEGIN CERTIFICATE-----", ""):
        with pytest.raises(UpdateRefusedError, match="authority does not know"):
            check_signature(forged.model_copy(update={"certificate": certificate}), FORM, 7, WEIGHTS, state / AUTHORITY)


def test_an_expired_certificate_signs_nothing(state: Path) -> None:
    signature = Signer(state).sign(FORM, 7, WEIGHTS)
    with pytest.raises(UpdateRefusedError, match="not valid now"):
        check_signature(signature, FORM, 7, WEIGHTS, state / AUTHORITY, now=datetime.now(UTC) + timedelta(days=20_000))


def test_an_authority_that_has_expired_vouches_for_nobody(state: Path) -> None:
    """Though a certificate that it once gave may say that it is valid for longer."""
    signature = Signer(state).sign(FORM, 7, WEIGHTS)
    ends = read_certificate(state / AUTHORITY).not_valid_after_utc
    with pytest.raises(UpdateRefusedError, match="certificate of this site's authority is not valid now"):
        check_signature(signature, FORM, 7, WEIGHTS, state / AUTHORITY, now=ends + timedelta(days=1))


def test_a_time_that_has_not_come_is_refused_unless_a_clock_is_just_a_little_wrong(state: Path) -> None:
    """Else no later model of the run would ever count as newer."""
    now = datetime.now(UTC)
    check_signature(
        Signer(state).sign(FORM, 7, WEIGHTS, now=now + timedelta(hours=3)), FORM, 7, WEIGHTS, state / AUTHORITY
    )
    with pytest.raises(UpdateRefusedError, match=r"a time that has not come yet\. Set the clocks"):
        check_signature(
            Signer(state).sign(FORM, 7, WEIGHTS, now=now + timedelta(days=3)), FORM, 7, WEIGHTS, state / AUTHORITY
        )


def test_a_signature_without_its_time_is_refused_in_words(state: Path) -> None:
    plan = PublishPlan(round=7, signature=Signer(state).sign(FORM, 7, WEIGHTS))
    record = publish_request(WEIGHTS, plan, WEIGHTS.form_hash)
    del record.values["plan"]["signature"]["signed"]  # type: ignore[index]
    with pytest.raises(ProtocolError, match="signed"):
        read_publish_request(record, WEIGHTS)
