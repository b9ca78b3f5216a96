"""Models of sequences of vectors: a linear read-in, the decoder's trunk or an LSTM, and a linear read-out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bakeoff.lm.decoder import DecoderConfig, DecoderForCausalLM


class PointsDecoder(nn.Module):
    """From vectors [rows, places, inputs] to [rows, places, outputs] by a decoder, whose embeddings of tokens are not used.

    Its random weights follow from the seed. shape: fields of DecoderConfig; default layer norms, GELU, and deviations by
    fan in.
    """

    def __init__(self, seed: int, inputs: int, outputs: int, **shape: Any) -> None:
        super().__init__()
        self.config = DecoderConfig(
            **{"vocab_size": 1, "mlp": "gelu", "norm": "layer", "initialization": "fan_in", "use_cache": False, **shape}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.read_in = nn.Linear(inputs, self.config.hidden_size)
            self.trunk = DecoderForCausalLM(self.config).model
            self.read_out = nn.Linear(self.config.hidden_size, outputs)
        self.trunk.embed_tokens.requires_grad_(False)

    def forward(self, points: Tensor) -> Tensor:
        states = self.trunk(inputs_embeds=self.read_in(points)).last_hidden_state
        outputs: Tensor = self.read_out(states)
        return outputs

    def state_size(self, places: int) -> int:
        """Numbers that a prediction can read of so many places, where all mixers are attention: keys and values."""
        config = self.config
        return 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * places


class PointsLSTM(nn.Module):
    """From vectors [rows, places, inputs] to [rows, places, outputs] by an LSTM; its random weights follow from the seed."""

    def __init__(self, seed: int, inputs: int, outputs: int, *, hidden_size: int, layers: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.read_in = nn.Linear(inputs, hidden_size)
            self.recurrent = nn.LSTM(hidden_size, hidden_size, layers, batch_first=True)
            self.read_out = nn.Linear(hidden_size, outputs)

    def forward(self, points: Tensor) -> Tensor:
        outputs: Tensor = self.read_out(self.recurrent(self.read_in(points))[0])
        return outputs

    def state_size(self, places: int) -> int:
        """Numbers that a prediction can read, however many places there were: hidden and cell states of all layers."""
        return 2 * self.recurrent.num_layers * self.recurrent.hidden_size

    @classmethod
    def of_size(cls, parameters: int, seed: int, inputs: int, outputs: int, *, layers: int) -> PointsLSTM:
        """One whose width brings it nearest to so many parameters."""

        def size(width: int) -> int:
            return width * (inputs + 1) + layers * 8 * width * (width + 1) + outputs * (width + 1)

        width = 1
        while abs(size(width + 1) - parameters) < abs(size(width) - parameters):
            width += 1
        return cls(seed, inputs, outputs, hidden_size=width, layers=layers)
