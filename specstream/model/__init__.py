"""A stock Hugging Face model in parts, and how layers are computed: masks, cache, attention, packed weights, LoRA."""
