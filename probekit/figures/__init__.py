"""Tables to matplotlib figures; nothing here needs a weight or an image."""

from probekit.figures.boxes import plot_what_where as plot_what_where
from probekit.figures.curves import plot_depth as plot_depth
from probekit.figures.curves import plot_few_shot as plot_few_shot
from probekit.figures.drawing import draw as draw
from probekit.figures.drawing import draw_attribution as draw_attribution
from probekit.figures.drawing import draw_boxes as draw_boxes
from probekit.figures.drawing import draw_geometry as draw_geometry
from probekit.figures.drawing import draw_invariance as draw_invariance
from probekit.figures.drawing import draw_pretraining as draw_pretraining
from probekit.figures.drawing import draw_probe as draw_probe
from probekit.figures.drawing import draw_reconstruction as draw_reconstruction
from probekit.figures.drawing import draw_similarity as draw_similarity
from probekit.figures.drawing import draw_transfer as draw_transfer
from probekit.figures.drawing import save_figures as save_figures
from probekit.figures.inversions import plot_error_maps as plot_error_maps
from probekit.figures.inversions import plot_inversions as plot_inversions
from probekit.figures.inversions import plot_residuals as plot_residuals
from probekit.figures.layers import plot_layers as plot_layers
from probekit.figures.matrices import plot_class_recall as plot_class_recall
from probekit.figures.matrices import plot_targets as plot_targets
from probekit.figures.places import plot_examples as plot_examples
from probekit.figures.places import plot_places as plot_places
from probekit.figures.relation import plot_relation as plot_relation
from probekit.figures.training import plot_training as plot_training
from probekit.figures.transfer import plot_learning as plot_learning
from probekit.figures.transfer import plot_reset_curves as plot_reset_curves
