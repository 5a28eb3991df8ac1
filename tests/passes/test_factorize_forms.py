"""Decompositions: exact at full rank, optimal where theory says so, better with what is known of the inputs."""

import numpy as np
import pytest

from graphc.passes import factorize_forms as forms
from graphc.passes.factorize_forms import Doubles, Factors, Moments

RNG = np.random.default_rng(0)
SHAPE = (12, 8, 3, 3)


def inputs(width: int = 72, count: int = 600) -> Doubles:
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, width)) @ (rng.normal(size=(width, width)) * np.exp(rng.normal(size=width)))


def weights() -> Doubles:
    return np.random.default_rng(2).normal(size=SHAPE)


def moments(*, data: bool) -> Moments:
    x = inputs()
    return Moments.of(weights().reshape(12, -1), x.T @ x if data else None)


def error(matrix: Doubles, *, data: bool) -> float:
    exact, x = weights().reshape(12, -1), inputs() if data else np.eye(72)
    return float(np.square(x @ (matrix - exact).T).sum() / np.square(x @ exact.T).sum())


FULL = {
    "channel": lambda m: forms.channel(SHAPE, m, 12),
    "tucker": lambda m: forms.tucker(weights(), m, (8, 12)),
    "spatial": lambda m: forms.spatial(weights(), 24),
    "depthwise": lambda m: forms.depthwise(weights(), m, 9),
}
PART = {
    "channel": lambda m: forms.channel(SHAPE, m, 6),
    "tucker": lambda m: forms.tucker(weights(), m, (5, 7)),
    "depthwise": lambda m: forms.depthwise(weights(), m, 4),
    "cp": lambda m: forms.cp(weights(), m, 20),
}


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("form", FULL)
def test_full_rank_is_exact(form: str, data: bool) -> None:
    found = FULL[form](moments(data=data))
    assert error(found.matrix, data=data) < 1e-5


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_without_data_a_channel_form_is_the_truncated_svd(rank: int) -> None:
    left, values, right = np.linalg.svd(weights().reshape(12, -1), full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    np.testing.assert_allclose(forms.channel(SHAPE, moments(data=False), rank).matrix, best, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_with_data_it_is_svd_llm(rank: int) -> None:
    """The SVD of W S, S S^T = G, cut off and multiplied by S^-1, is optimal at the layer's output."""
    known = moments(data=True)
    assert known.gram is not None
    root = np.linalg.cholesky(known.gram)
    left, values, right = np.linalg.svd(weights().reshape(12, -1) @ root, full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank] @ np.linalg.inv(root)
    found = forms.channel(SHAPE, known, rank)
    np.testing.assert_allclose(found.matrix, best, atol=1e-6)
    explained, _ = forms.spectrum(known)
    assert known.error(found.matrix) == pytest.approx(1 - explained[:rank].sum() / known.power, abs=1e-9)


@pytest.mark.parametrize("form", PART)
def test_what_is_known_of_the_inputs_lessens_the_error(form: str) -> None:
    blind, known = (PART[form](moments(data=data)) for data in (False, True))
    assert error(known.matrix, data=True) < error(blind.matrix, data=True)


@pytest.mark.parametrize("form", [*PART, "spatial"])
def test_stages_multiply_to_the_matrix(form: str) -> None:
    found = PART[form](moments(data=True)) if form in PART else forms.spatial(weights(), 9)
    np.testing.assert_allclose(composed(found), found.matrix.reshape(SHAPE), atol=1e-8)


def composed(found: Factors) -> Doubles:
    """The stages as one convolution."""
    stages = found.stages
    match found.form:
        case "channel":
            return np.einsum("rcyx,nrij->ncyx", *stages)
        case "tucker":
            return np.einsum("pcij,qpyx,nqkl->ncyx", *stages)
        case "spatial":
            return np.einsum("rcyi,nrjx->ncyx", *stages)
        case "cp":
            return np.einsum("rcij,rkyl,rmox,nrpq->ncyx", *stages)
    windows = stages[0].reshape(8, -1, 3, 3)
    return np.einsum("cmyx,ncm->ncyx", windows, stages[1].reshape(12, 8, -1))


def test_tucker_is_at_least_as_good_as_its_hosvd() -> None:
    array = weights().reshape(12, 8, 9)
    into = np.linalg.svd(array.transpose(1, 0, 2).reshape(8, -1))[0][:, :5]
    out = np.linalg.svd(array.reshape(12, -1))[0][:, :7]
    start = np.einsum("nck,cp,dp,nq,mq->mdk", array, into, into, out, out).reshape(12, -1)
    found = forms.tucker(weights(), moments(data=False), (5, 7)).matrix
    assert error(found, data=False) < error(start, data=False)


def test_cp_finds_a_tensor_of_its_own_rank() -> None:
    rng = np.random.default_rng(5)
    exact = np.einsum("nr,cr,yr,xr->ncyx", *(rng.normal(size=(size, 3)) for size in SHAPE))
    found = forms.cp(exact, Moments.of(exact.reshape(12, -1), None), 4)
    assert np.square(found.matrix - exact.reshape(12, -1)).sum() < 1e-2 * np.square(exact).sum()


def test_more_rank_errs_less() -> None:
    known = moments(data=True)
    errors = [known.error(forms.channel(SHAPE, known, rank).matrix) for rank in range(1, 13)]
    assert (np.diff(errors) < 1e-12).all()
