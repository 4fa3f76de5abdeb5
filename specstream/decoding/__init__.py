"""The decode loop, acceptance, sampling and text, and what they ask of targets and drafters. No model is known here."""
