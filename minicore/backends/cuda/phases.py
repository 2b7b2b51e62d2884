"""How long each phase of a token takes on a GPU: a launch for each, with events between them."""

from __future__ import annotations

from numba import cuda

from minicore.backends.cuda.decoder import TOKENS_PER_LAUNCH, CudaDecoder
from minicore.backends.cuda.graph import GraphStep
from minicore.backends.cuda.kernels.decode.phases import PHASES


class PhaseTimer:
    """Times the phases of one token.

    Parameters
    ----------
    decoder : CudaDecoder
        Its kv cache needs room for more tokens: what it holds from the context on is overwritten.
    """

    def __init__(self, decoder: CudaDecoder) -> None:
        self.decoder, self.step = decoder, GraphStep(decoder.shape, decoder.shared_bytes)

    def seconds(self, context: int) -> list[float]:  # -> (n_phases,)
        """Return the seconds of each phase of a token after this context, all layers together.

        Launching from Python takes longer than the phases themselves. So other tokens are decoded first,
        and all launches of the timed token are queued meanwhile.
        """
        self._decode_ahead(context)
        events = [cuda.event() for _ in range(1 + len(list(self.step.order())))]
        launched = []
        for event, phase in zip(events, self.decoder.launch_phases(self.step), strict=True):
            event.record()
            launched.append(phase)
        events[-1].synchronize()
        spent = [0.0] * len(PHASES)
        for phase, before, after in zip(launched[1:], events, events[1:], strict=False):
            spent[phase] += before.elapsed_time(after) / 1e3
        return spent

    def _decode_ahead(self, context: int) -> None:
        """Decode about TOKENS_PER_LAUNCH tokens from the context on, without waiting for them."""
        decoder, cache = self.decoder, self.decoder.cache
        room = cache.capacity - context - 1
        for _ in range(-(-TOKENS_PER_LAUNCH // max(room, 1)) if room else 0):
            cache.rewind(context)
            decoder.launch(min(room, TOKENS_PER_LAUNCH), decoder.token_buffers[1])
