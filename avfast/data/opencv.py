"""OpenCV, or what to install where it does not load."""

from __future__ import annotations

try:
    import cv2
    import cv2.ximgproc
except ImportError as error:
    raise ImportError(
        f"OpenCV with its contributed modules does not load ({error}). Where a shared library such as "
        "libGL.so.1 is missing: apt-get install libgl1 libglib2.0-0. Where cv2.ximgproc is missing: "
        "pip uninstall opencv-python opencv-python-headless, then pip install opencv-contrib-python."
    ) from error

__all__ = ["cv2"]
