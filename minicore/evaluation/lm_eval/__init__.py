"""minicore as a model of lm-evaluation-harness (extra ``lm-eval``): importing this registers ``minicore``.

The harness's own command only knows its own models (0.4.13 loads no plug-ins), so the same command line goes
through this module::

    python -m minicore.lm_eval --model minicore --model_args model=smollm2-135m,predictor=griffin,beta=0.4 ...

In every task the context is read densely, and what follows it is generated or scored with the neurons chosen
from the context. (The authors' code, like others, stays dense wherever several tokens are read at once, so a
log-likelihood task never uses the sparse path.) With ``predictor=dense`` the results are those of the
harness's Hugging Face model.
"""

from minicore.evaluation.lm_eval.model import MinicoreLM as MinicoreLM
