"""The decode loop, acceptance, sampling and text, with their interfaces to targets and drafters. No model code."""
