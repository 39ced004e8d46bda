"""How the figures of evaluations and studies look: Matplotlib's settings."""

STYLE = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
