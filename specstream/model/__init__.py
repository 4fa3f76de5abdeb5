"""The parts of a stock Hugging Face model, and how its layers run: masks, cache, attention, packed weights, LoRA."""
