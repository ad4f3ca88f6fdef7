"""The model of an exposure: what chips share is shared, what is their own is restrained, outliers do not count."""

import numpy as np
import pytest

from lap_assets.science.focal_plane_model import Block, estimate_floor, fit_blocks, legendre_terms, make_block

MAS = 1.0 / 3.6e6
SHAPE = (1000, 500)
CHIPS = [(i, j) for i in range(4) for j in range(3)]


def simulate(rng, per_chip=40, noise_mas=10.0, shared_mas=0.0, own_mas=0.0, outliers=0):
    """Blocks' arguments, and the true correction of each chip as a function of pixels and focal-plane position."""
    shared = rng.normal(0, shared_mas * MAS, (7, 2))
    stars, truth = {}, {}
    for i, j in CHIPS:
        name = f"c{i}{j}"
        affine, own = rng.normal(0, 500 * MAS, (3, 2)), rng.normal(0, own_mas * MAS, (3, 2))

        def correct(x, y, focal, affine=affine, own=own):
            u, v = (x - 249.5) / 500, (y - 499.5) / 500
            p, q = focal.T
            cubic = np.stack([p * p, p * q, q * q, p**3, p * p * q, p * q * q, q**3], axis=1)
            return (
                np.stack([np.ones_like(u), u, v], axis=1) @ affine
                + np.stack([u * u, u * v, v * v], axis=1) @ own
                + cubic @ shared
            )

        x, y = rng.uniform(0, 500, per_chip), rng.uniform(0, 1000, per_chip)
        focal = focal_position(i, j, x, y)
        target = correct(x, y, focal) + rng.normal(0, noise_mas * MAS, (per_chip, 2))
        target[:outliers] += 300 * MAS
        stars[name] = (SHAPE, x, y, focal, target, np.full(per_chip, noise_mas * MAS))
        truth[name] = correct
    return stars, truth


def focal_position(i, j, x, y):
    return np.stack([(i - 2 + x / 500) / 2, (j - 1.5 + y / 1000) / 1.5], axis=1)


def rms_mas(fit, truth):
    """Of fit minus truth on a grid over all chips."""
    x, y = (one.ravel() for one in np.meshgrid(np.linspace(0, 500, 7), np.linspace(0, 1000, 7)))
    pieces = []
    for i, j in CHIPS:
        focal = focal_position(i, j, x, y)
        pieces.append(fit.evaluate(f"c{i}{j}", x, y, focal) - truth[f"c{i}{j}"](x, y, focal))
    return float(np.sqrt(np.mean(np.concatenate(pieces) ** 2))) / MAS


def make_blocks(stars, order):
    return {name: make_block(*one, order) for name, one in stars.items()}


def test_shared_distortion_is_found_at_its_order_and_missed_without_terms():
    stars, truth = simulate(np.random.default_rng(1), shared_mas=200.0)
    fit = fit_blocks(make_blocks(stars, 5), 5)
    assert (fit.order, fit.prior) == (3, 0.0)
    assert rms_mas(fit, truth) < 4.0
    assert rms_mas(fit_blocks(make_blocks(stars, 1), 1), truth) > 15.0


def test_without_distortion_no_terms_are_bought():
    stars, truth = simulate(np.random.default_rng(2))
    fit = fit_blocks(make_blocks(stars, 5), 5)
    assert (fit.order, fit.prior, fit.chip_order) == (1, 0.0, 1)
    assert rms_mas(fit, truth) < 4.0


def test_chips_get_terms_of_their_own_restrained_by_what_all_chips_say():
    """With few stars per chip, free quadratics would cost more than the prior lets them."""
    stars, truth = simulate(np.random.default_rng(3), per_chip=20, own_mas=15.0)
    fit = fit_blocks(make_blocks(stars, 3), 3)
    assert fit.prior > 0
    error = rms_mas(fit, truth)
    loose = []
    x, y = (one.ravel() for one in np.meshgrid(np.linspace(0, 500, 7), np.linspace(0, 1000, 7)))
    for i, j in CHIPS:
        name, focal = f"c{i}{j}", focal_position(i, j, x, y)
        terms = [np.stack([a**m * b**n for m in range(3) for n in range(3 - m)], axis=1) for a, b in (
            (stars[name][1] / 500, stars[name][2] / 500), (x / 500, y / 500))]  # fmt: skip
        solution, *_ = np.linalg.lstsq(terms[0], stars[name][4], rcond=None)
        loose.append(terms[1] @ solution - truth[name](x, y, focal))
    assert error < 0.95 * float(np.sqrt(np.mean(np.concatenate(loose) ** 2))) / MAS
    assert error < rms_mas(fit_blocks(make_blocks(stars, 2), 2), truth)


def test_outliers_are_rejected_and_named():
    stars, truth = simulate(np.random.default_rng(4), outliers=5)
    fit = fit_blocks(make_blocks(stars, 3), 3)
    assert all(not fit.used[name][:5].any() and fit.used[name][5:].mean() > 0.95 for name in stars)
    assert rms_mas(fit, truth) < 4.5


def test_scatter_beyond_the_stated_errors_is_found():
    """Turbulence of 12 mas on centroids that claim 2 mas."""
    rng = np.random.default_rng(5)
    error = np.full(4000, 2.0 * MAS)
    length = np.hypot(*rng.normal(0, np.hypot(12.0, 2.0) * MAS, (2, 4000)))
    assert estimate_floor(length, error) / MAS == pytest.approx(12.0, rel=0.05)
    assert estimate_floor(length / 100, error) == 0.0


def test_a_chip_without_stars_inherits_an_affine_map():
    stars, _ = simulate(np.random.default_rng(6), shared_mas=200.0)
    fit = fit_blocks(make_blocks(stars, 3), 3)
    x, y = (one.ravel() for one in np.meshgrid(np.linspace(0, 500, 5), np.linspace(0, 1000, 5)))
    focal = focal_position(4, 1, x, y)
    target = legendre_terms(focal, 2, fit.order) @ fit.shared + np.stack([x, -y], axis=1) * 1e-7
    fit.inherit("new", SHAPE, x, y, focal, target)
    assert np.allclose(fit.evaluate("new", x, y, focal), target, atol=0.01 * MAS)


def test_legendre_terms_are_orthogonal_on_the_square():
    nodes, weights = np.polynomial.legendre.leggauss(8)
    p, q = (one.ravel() for one in np.meshgrid(nodes, nodes))
    terms = legendre_terms(np.stack([p, q], axis=1), 0, 5)
    gram = terms.T @ (terms * np.outer(weights, weights).ravel()[:, None])
    assert terms.shape[1] == 21
    assert np.allclose(gram, np.diag(np.diag(gram)), atol=1e-12)


def test_a_single_chip_is_solved_alone():
    stars, truth = simulate(np.random.default_rng(7), own_mas=50.0)
    fit = fit_blocks({"c00": make_block(*stars["c00"], 3)}, 3)
    x = y = np.linspace(50, 450, 9)
    error = fit.evaluate("c00", x, y, focal_position(0, 0, x, y)) - truth["c00"](x, y, focal_position(0, 0, x, y))
    assert isinstance(make_block(*stars["c00"], 3), Block)
    assert np.sqrt(np.mean(error**2)) / MAS < 6.0
