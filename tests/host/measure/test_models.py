"""Every kind of model against transformers and llama.cpp: docs/results/models.json."""

import dataclasses

import numpy as np
import pytest

from host.measure.models import LIMIT, MISSING, VARIANTS, Written, measure

needs_judges = pytest.mark.skipif(bool(MISSING), reason=(
    f"{' and '.join(MISSING)} is not here: pip install -e '.[judges]'"))


def test_variants():
    """No variant comes twice, and each architecture has a checkpoint and another format."""
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) >= 40
    kinds = {}
    for variant in VARIANTS:
        kinds.setdefault(variant.architecture.partition(",")[0], set()).add(
            variant.format.partition(",")[0])
    assert all("safetensors" in found for found in kinds.values())


@pytest.mark.slow
@needs_judges
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_judges(variant):
    outcome = measure(variant)
    assert outcome.difference < variant.limit
    assert outcome.golden_jsd < 0.05


@pytest.mark.slow
@needs_judges
@pytest.mark.parametrize("judge", ["transformers", "llama.cpp"])
def test_the_comparison_can_fail(judge):
    """One weight in a thousand moves by a tenth: the difference is beyond the limit."""
    variant = next(variant for variant in VARIANTS if variant.judge == judge
                   and variant.format in ("safetensors", "GGUF, F32"))

    def write(folder):
        written = variant.write(folder)
        expected = written.judge
        file = folder / "model.safetensors" if written.path == folder else written.path

        def judged(tokens):
            found = expected(tokens)
            data = bytearray(file.read_bytes())
            # The last tenth of the file is float32 numbers of matrices, whole from its end on.
            numbers = np.frombuffer(data[-(len(data) // 40 * 4):], "<f4").copy()
            numbers[::1000] *= np.float32(1.1)
            data[-numbers.nbytes:] = numbers.tobytes()
            file.write_bytes(data)
            return found
        return Written(written.path, judged)

    assert measure(dataclasses.replace(variant, write=write)).difference > LIMIT
