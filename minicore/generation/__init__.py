"""From a prompt to text: options, prediction of core neurons, the stream of tokens, sampling."""
