"""Photometric changes: by the draws alone, of the strength asked for."""

from __future__ import annotations

import numpy as np

from data.draws import BRIGHTNESS, MOST, SATURATION, Draws
from data.placement import recolour

PIXELS = np.random.default_rng(0).integers(40, 160, (6, 7, 3)).astype(np.uint8)


def recoloured(pixels: np.ndarray, strength: float, draws: np.ndarray) -> np.ndarray:
    return np.asarray(recolour({"images": pixels}, Draws(draws, 0, 0, 0), strength=strength)["images"])


def middle(**places: float) -> np.ndarray:
    """Draws that change nothing but what is given."""
    draws = np.full(MOST, 0.5)
    for name, value in places.items():
        draws[{"brightness": BRIGHTNESS, "saturation": SATURATION}[name]] = value
    return draws


def test_no_strength_and_middle_draws_change_nothing() -> None:
    assert (recoloured(PIXELS, 0.0, np.zeros(MOST)) == PIXELS).all()
    assert np.abs(recoloured(PIXELS, 0.5, middle()).astype(int) - PIXELS).max() <= 1


def test_brightness_is_a_factor() -> None:
    dark = recoloured(PIXELS, 0.5, middle(brightness=0.0))
    assert np.abs(dark - 0.5 * PIXELS.astype(float)).max() <= 1.5


def test_saturation_moves_colours_towards_gray() -> None:
    pale = recoloured(PIXELS, 0.9, middle(saturation=0.0))
    assert np.ptp(pale.astype(int), axis=2).mean() < 0.2 * np.ptp(PIXELS.astype(int), axis=2).mean()
