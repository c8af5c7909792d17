"""Trained models in use: opening a run, its metrics, predictions, calibration and comparison."""
