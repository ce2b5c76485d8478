"""Noise schedules, samplers, noise and initial images."""
