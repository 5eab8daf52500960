from __future__ import annotations

import numpy as np
import pytest

from manyeyes.report.pictures import class_colour, draw_detections, found_and_false


def test_the_given_picture_is_not_changed() -> None:
    image = np.full((120, 160, 3), 90, np.uint8)
    drawn = draw_detections(image, [(20, 40, 90, 100, 0.87, 0)], ("person",))
    assert (image == 90).all()
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    red, green, blue = class_colour(0)
    assert drawn[70, 20] == pytest.approx(np.array([blue, green, red]), abs=40)


@pytest.mark.parametrize("shape", [(8, 8, 3), (40, 40), (1200, 40, 3), (720, 1280, 3)])
def test_any_size_and_boxes_at_the_border(shape: tuple[int, ...]) -> None:
    image = np.zeros(shape, np.uint8)
    boxes = [(-5.0, -5.0, 4000.0, 4000.0, 0.9, 0), (1.0, 1.0, 2.0, 2.0, 0.5, 7), (0, 0, 3, 3, 0.4, 0)]
    drawn = draw_detections(image, boxes, ("Größe 日",), missed=[(2, 2, 30, 30, 1)])
    assert drawn.shape == (*shape[:2], 3)
    assert drawn.any()


def test_no_detections_leave_the_picture_alone() -> None:
    image = np.full((20, 20, 3), 7, np.uint8)
    assert (draw_detections(image, [], ()) == image).all()


def test_found_and_false() -> None:
    truth = [(0, 0, 10, 10, 0), (20, 0, 30, 10, 0), (40, 0, 50, 10, 1)]
    boxes = [
        (0, 0, 10, 9, 0.9, 0),  # meets the first
        (0, 0, 10, 10, 0.8, 0),  # the first again
        (20, 0, 30, 10, 0.7, 1),  # another class
        (40, 0, 44, 10, 0.6, 1),  # too small an overlap
    ]
    assert found_and_false(truth, boxes) == ([True, False, False], 3)
    assert found_and_false([], []) == ([], 0)
