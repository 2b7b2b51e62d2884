"""The table through which kernels find a model's weights: a row of addresses for each layer."""

from __future__ import annotations

# Addresses, 0 for what a model does not have, then the layer's list of neurons (0 for all), how many it
# lists, and how many rows the matrices have.
COLUMNS = (
    *("ln1.w", "ln1.b", "attn.w_q", "attn.w_k", "attn.w_v", "attn.w_o"),
    *("attn.b_q", "attn.b_k", "attn.b_v", "attn.b_o", "ln2.w", "ln2.b"),
    *("mlp.w_gate", "mlp.w_in", "mlp.w_out", "mlp.b_gate", "mlp.b_in", "mlp.b_out"),
    *("rows", "n_rows", "n_stored"),
)
LN1_W, LN1_B, W_Q, W_K, W_V, W_O, B_Q, B_K, B_V, B_O, LN2_W, LN2_B = range(12)
W_GATE, W_IN, W_OUT, B_GATE, B_IN, B_OUT, ROWS, N_ROWS, N_STORED = range(12, 21)
# The table's last row is the rest of the model.
REST = ("embed", "pos_embed", "ln_f.w", "ln_f.b", "head", "head_bias")
EMBED, POS_EMBED, LN_F_W, LN_F_B, HEAD, HEAD_B = range(6)
