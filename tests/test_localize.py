"""Localising files: the scores that evaluation gives, every output, nothing overwritten."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import media_maker
import numpy as np
import pytest
import soundfile
import tiny_shards
import torch

import avfast
