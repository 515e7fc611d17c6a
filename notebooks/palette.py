"""Colors of the divergences in all notebooks, from χ² to forward KL in the order of their α."""

DIVERGENCES = {
    "chi2": "#2A0593",
    "reverse_kl": "#7E03A8",
    "js": "#B83289",
    "hellinger": "#DB5C68",
    "forward_kl": "#F48849",
    "entropy": "#888888",
}
