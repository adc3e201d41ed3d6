"""What the probes raise."""


class ProbeError(RuntimeError):
    """A layer's signal could not be measured; the message names the layer, why, and the way out."""
