"""Facts about measures of all analyses but probes, for which see `metrics`."""

from __future__ import annotations

from probekit.results.detection_measures import DETECTION_MEASURES
from probekit.results.metric import MetricFacts, share, uniform
from probekit.results.transfer_measures import TRANSFER_MEASURES

MEASURES: dict[str, MetricFacts] = {
    **DETECTION_MEASURES,
    **TRANSFER_MEASURES,
    "icc": MetricFacts(
        "ICC(1)",
        "",
        None,
        None,
        1.0,
        "Share of the features' variance that lies between classes, debiased: 0 without class signal, 1 "
        "where all images of a class are one point. High means that the layer has become invariant to "
        "what varies inside a class; whether that helps depends on the task.",
    ),
    "omega_squared": MetricFacts(
        "ω²",
        "",
        None,
        None,
        1.0,
        "Share of the variance of these very images that their classes explain, debiased. Unlike ICC it "
        "counts frequent classes more.",
    ),
    "within_between": MetricFacts(
        "Within/between variance",
        "",
        None,
        0.0,
        None,
        "Total variance inside classes over that between them, debiased; low means that images of a class"
        " lie close. It has no upper end where classes do not differ, and is then left empty.",
        ratio=True,
    ),
    "cdnv": MetricFacts(
        "Class-distance normalised variance",
        "",
        None,
        0.0,
        None,
        "Median over pairs of classes: mean variance inside the two over their squared distance, "
        "debiased. It sees variance in all directions, also those in which the classes do not differ.",
        ratio=True,
    ),
    "directional_cdnv": MetricFacts(
        "Directional CDNV",
        "",
        None,
        0.0,
        None,
        "Median over pairs of classes: variance inside a class along the line to the other, over their "
        "squared distance. Only this variance makes a linear classifier of few images err: read it beside"
        " CDNV, which may be high while this is low.",
        ratio=True,
    ),
    "vci": MetricFacts(
        "Variability collapse index",
        "",
        None,
        0.0,
        1.0,
        "One minus the share of the shrunk total covariance that class means fill: 0 where classes are "
        "points, 1 where they do not differ. With fewer than ten images a feature it is low by chance: "
        "compare with the null.",
    ),
    "nc1": MetricFacts(
        "NC1",
        "",
        None,
        0.0,
        None,
        "Variance inside classes relative to that between them, direction by direction; 0 is collapse. It "
        "depends on D, the classes and images a class: compare with the null, not between taps.",
        ratio=True,
    ),
    "nc2_norms": MetricFacts(
        "NC2, norms",
        "",
        None,
        0.0,
        None,
        "How unequal the distances of class means from the centre are; 0 on a simplex. Means of noise "
        "look like a simplex as well: it says something only where ICC is above its null.",
    ),
    "nc2_angles": MetricFacts(
        "NC2, angles",
        "",
        None,
        0.0,
        None,
        "Mean deviation of the cosines between class means from −1/(C − 1); 0 on a simplex. Means of "
        "noise look like a simplex as well: it says something only where ICC is above its null.",
    ),
    "nc3": MetricFacts(
        "NC3",
        "",
        None,
        0.0,
        2.0,
        "Distance of the fitted probe's weights from the class means, both of unit norm: 0 is the same, √2 "
        "unrelated.",
    ),
    "nc4": MetricFacts(
        "NC4",
        "",
        None,
        0.0,
        1.0,
        "Share of test images that the fitted probe and the nearest class mean name alike.",
        uniform,
        "about 1 / C",
    ),
    "cosine_intra": MetricFacts(
        "Cosine inside classes",
        "",
        None,
        -1.0,
        1.0,
        "Mean cosine of two images of a class. Features that are never negative have high cosines of any "
        "pair: read the gap, or the centred one.",
    ),
    "cosine_inter": MetricFacts(
        "Cosine between classes", "", None, -1.0, 1.0, "Mean cosine of two images of different classes."
    ),
    "cosine_gap": MetricFacts(
        "Cosine gap",
        "",
        None,
        -2.0,
        2.0,
        "Mean cosine inside classes minus that between them; 0 without class signal.",
    ),
    "alignment": MetricFacts(
        "Alignment", "", None, 0.0, 4.0, "Mean squared distance of two images of a class, at unit length."
    ),
    "uniformity": MetricFacts(
        "Uniformity",
        "",
        None,
        None,
        0.0,
        "How evenly features of unit length are spread: 0 where all are alike, about −4 where they fill a"
        " sphere of many dimensions.",
    ),
    "class_separation": MetricFacts(
        "Class separation R²",
        "",
        None,
        None,
        1.0,
        "One minus cosine distance inside classes over distance overall, debiased; 0 without class signal. "
        "Losses that raise it on the pretraining classes tend to transfer worse.",
    ),
    "silhouette": MetricFacts(
        "Silhouette",
        "",
        None,
        -1.0,
        1.0,
        "How much nearer an image is to its own class than to the next one, on average. It drifts with D at "
        "equal class signal.",
    ),
    "recall_at_1": share("Recall@1", "Share of images whose nearest other image is of their class."),
    "recall_at_5": share(
        "Recall@5", "Share of images with one of their class among the 5 nearest.", chance=False
    ),
    "recall_at_10": share(
        "Recall@10", "Share of images with one of their class among the 10 nearest.", chance=False
    ),
    "map_at_r": share(
        "MAP@R",
        "Average precision within the R nearest images, R being how many others the class has. Recall@1 "
        "saturates where this still tells layers apart.",
        chance=False,
    ),
    "within_class_r2": MetricFacts(
        "R² inside classes",
        "",
        None,
        None,
        1.0,
        "Share of a factor's test variance inside classes that a linear map reads from what features keep"
        " inside classes: 0 is nothing. Low means invariance to that factor, or a readout that cannot "
        "show it.",
    ),
    "tcav": MetricFacts(
        "Concept sensitivity (TCAV)",
        "",
        None,
        0.0,
        1.0,
        "Share of a class's images whose score rises when a concept's direction is added to a layer: 1 all, "
        "0 none. Only signs count, so that random directions give anything from 0 to 1: believe it where "
        "p_holm in the params is small and the held-out accuracy of the direction is well above one half.",
    ),
    "pixel_r2": MetricFacts(
        "R² of pixels",
        "",
        True,
        None,
        1.0,
        "Share of the variance of the images' 8 × 8 cells of colour, or of one band of their spatial "
        "frequencies, that a linear map reads from as many projected features of every tap; of 32 × 32 for a "
        "small trained decoder, whose finest band is wider. What it does not read may still be there. The "
        "ceiling in the params is that of the pixels themselves, read in the same way.",
    ),
    "pretraining_loss": MetricFacts(
        "Pretraining loss",
        "",
        None,
        None,
        None,
        "Loss of the last step, of the arm's own objective: losses of different objectives have no common "
        "scale, and a low one is no proof of good features.",
    ),
    "verdict": MetricFacts(
        "Verdict",
        "",
        None,
        -1.0,
        1.0,
        "1 supported, −1 refuted, 0 inconclusive, by rules that were written before; the params say why.",
    ),
    "rule_value": MetricFacts(
        "Value of a rule",
        "in its own units",
        None,
        None,
        None,
        "Weighed sum of values of arms, seed by seed, that a rule holds against its bound.",
    ),
    "images_per_s": MetricFacts(
        "Views per second",
        "1/s",
        None,
        0.0,
        None,
        "Augmented views that went through the training in a second at its end, on the machine at hand.",
    ),
    "foreground_error": MetricFacts(
        "Unread share of the foreground",
        "",
        None,
        0.0,
        None,
        "Squared error of the pixels inside boxes or masks, relative to that of the mean image: 0 is read "
        "without error, 1 no better than the mean image.",
    ),
    "background_error": MetricFacts(
        "Unread share of the background",
        "",
        None,
        0.0,
        None,
        "The same outside of boxes and masks.",
    ),
    "background_ratio": MetricFacts(
        "Background over foreground error",
        "",
        None,
        0.0,
        None,
        "Above 1 the layer keeps less of the background than of the foreground, each relative to its own "
        "variance.",
        ratio=True,
    ),
    "psnr": MetricFacts(
        "Peak signal to noise of made images",
        "dB",
        True,
        None,
        None,
        "10·log₁₀(1/MSE) of an image made from features, against the true one. It rewards the right colours "
        "at the right places, and blur above wrong detail. The null is that of other images.",
    ),
    "ssim": MetricFacts(
        "Structural similarity of made images",
        "",
        True,
        -1.0,
        1.0,
        "Agreement of local means, contrasts and patterns in windows of 11 pixels: 1 for equal images. It "
        "depends on the size of the images: compare at one size only.",
    ),
    "gradient_deviation": MetricFacts(
        "Deviation of gradients of made images",
        "",
        False,
        0.0,
        None,
        "MS-GMSD, how unevenly edges agree over four scales: 0 for equal images. Colour plays no part.",
    ),
    "image_r2": MetricFacts(
        "R² of made images",
        "",
        True,
        None,
        1.0,
        "Share of an image's squared distance from the mean image that is made again, mean over images: 0 is "
        "no better than the mean image, below 0 worse, as wrong detail is.",
    ),
    "perceptual_distance": MetricFacts(
        "Perceptual distance of made images",
        "",
        False,
        0.0,
        None,
        "Distance of the made from the true image in the features of a further network, which the params "
        "name: compare only values of one network, and none of the network that was inverted.",
    ),
    "feature_residual": MetricFacts(
        "Residual of features",
        "",
        False,
        0.0,
        None,
        "Squared distance of the made image's features from the true ones, relative to that of the mean "
        "features: 0 is the same for the layer, 1 no nearer than the mean. It says how far an inversion "
        "came, not how good a layer is: images are compared at one residual.",
        ratio=True,
    ),
    "energy_inside": MetricFacts(
        "Energy inside",
        "",
        True,
        0.0,
        1.0,
        "Share of the positive part of the map that lies inside the mask or box of its class, the mean over "
        "images. Even a perfect map of a few places spills over a small thing: what counts is how far it is "
        "above the area of the thing, the centred Gaussian and the null.",
    ),
    "relevance_rank": MetricFacts(
        "Relevance rank",
        "",
        True,
        0.0,
        1.0,
        "Of as many highest pixels as the mask or box has, the share that lies inside it. Only the order of "
        "values counts, and the rest of the map does not.",
    ),
    "best_iou": MetricFacts(
        "Best IoU",
        "",
        True,
        0.0,
        1.0,
        "Intersection over union of the mask or box and the pixels above a threshold, at the threshold that "
        "is best for each image: an optimistic score. A constant map scores the area of the thing.",
    ),
    "pointing_game": MetricFacts(
        "Pointing game",
        "",
        True,
        0.0,
        1.0,
        "Share of images whose highest value lies inside the mask or box; a tie counts as a guess among the "
        "highest. One pixel decides an image, and large things in the middle are hit without looking: "
        "compare with the centred Gaussian.",
    ),
    "cascade_spearman": MetricFacts(
        "Rank correlation after reset",
        "",
        None,
        -1.0,
        1.0,
        "Of the places of a map before and after blocks were reset at random, from the tap downwards, the "
        "mean over images. It should fall to its null, maps of other images: a map that stays shows the "
        "image and not what was learnt.",
    ),
    "cascade_ssim": MetricFacts(
        "Structural similarity after reset",
        "",
        None,
        -1.0,
        1.0,
        "The same by structural similarity of the enlarged maps, each scaled to [0, 1]. Smooth maps are "
        "alike without being related: read it beside its null.",
    ),
    "whitened_cosine": MetricFacts(
        "Whitened cosine",
        "",
        None,
        -1.0,
        1.0,
        "Between an image and its changed copy, features whitened by all images: 1 is full invariance to "
        "the change, the null is that of other images. A layer that ignores everything carries nothing: "
        "read it beside the probes.",
    ),
    "mahalanobis": MetricFacts(
        "Mahalanobis distance",
        "",
        None,
        0.0,
        None,
        "Between an image and its changed copy, in units of how features vary between images; about √(2D) "
        "for two unrelated images.",
    ),
    "perturbation_variance": MetricFacts(
        "Variance made by the perturbation",
        "",
        None,
        None,
        1.0,
        "Share of the features' variance over images and strengths that lies between copies of one image: "
        "0 is invariance, 1 means that images can no longer be told apart.",
    ),
    "lidar": MetricFacts(
        "LiDAR",
        "",
        None,
        1.0,
        None,
        "Number of directions in which images differ by more than their changed copies do; at most the "
        "number of images less one, so it is compared at equal numbers only.",
    ),
    "target_invariance": MetricFacts(
        "Firing share of the best units",
        "",
        None,
        0.0,
        1.0,
        "How often the best units of a class fire for its held-out images, whatever is done to them, when "
        "each unit fires as often over all images as the class occurs. The null permutes the classes.",
    ),
    "cka": MetricFacts(
        "Linear CKA",
        "",
        None,
        0.0,
        1.0,
        "Alignment of the two layers' similarities of images; biased upwards by few images: the null is "
        "its mean over all pairings of images.",
    ),
    "cka_debiased": MetricFacts(
        "Debiased CKA",
        "",
        None,
        None,
        1.0,
        "The same from unbiased estimates: 0 on average for unrelated layers. A few directions of large "
        "variance can decide it: compare with the one without them.",
    ),
    "cka_debiased_rest": MetricFacts(
        "Debiased CKA without leading components",
        "",
        None,
        None,
        1.0,
        "After each layer lost its direction of largest variance.",
    ),
    "procrustes": MetricFacts(
        "Procrustes angle",
        "radians",
        None,
        0.0,
        1.5708,
        "Angle between the layers after the best rotation: 0 is the same shape, π/2 unrelated.",
    ),
    "svcca": MetricFacts(
        "SVCCA",
        "",
        None,
        0.0,
        1.0,
        "Mean canonical correlation of the directions that hold 99 % of each layer's variance.",
    ),
    "pwcca": MetricFacts(
        "PWCCA", "", None, 0.0, 1.0, "The same, weighted by what the first layer uses: not symmetric."
    ),
    "rsa": MetricFacts(
        "RSA",
        "",
        None,
        -1.0,
        1.0,
        "Rank correlation of the two layers' dissimilarities of all pairs of images.",
    ),
    "mutual_knn": MetricFacts(
        "Mutual neighbours",
        "",
        None,
        0.0,
        1.0,
        "Share of the nearest images that two layers have in common; chance is k/(N − 1), and N changes "
        "the scale.",
    ),
    "effective_rank": MetricFacts(
        "Effective rank",
        "",
        None,
        1.0,
        None,
        "exp of the entropy of the covariance's eigenvalues: over how many directions the variance spreads.",
    ),
    "participation_ratio": MetricFacts(
        "Participation ratio",
        "",
        None,
        1.0,
        None,
        "(Σλ)²/Σλ²: like the effective rank, less sensitive to small eigenvalues and to few images.",
    ),
    "rankme": MetricFacts(
        "RankMe",
        "",
        None,
        1.0,
        None,
        "exp of the entropy of the uncentred features' singular values. An offset common to all images, as "
        "after a ReLU, lowers it a lot; it was made to compare runs of one method.",
    ),
    "alpha_req": MetricFacts(
        "α of the spectrum",
        "",
        None,
        None,
        None,
        "Exponent of the power law fitted to the eigenvalues over the window in the params; another window "
        "gives another α.",
    ),
    "two_nn": MetricFacts(
        "Intrinsic dimension (TwoNN)",
        "",
        None,
        0.0,
        None,
        "From the ratio of distances to the two nearest images. It reads too low for high dimensions and few "
        "images.",
    ),
    "logme": MetricFacts(
        "LogME",
        "nats per image",
        True,
        None,
        None,
        "Log evidence of linear regression on the classes: higher foretells better linear transfer. It "
        "compares taps and models on the same images only.",
    ),
    "h_score": MetricFacts(
        "H-score",
        "",
        True,
        0.0,
        None,
        "How far class means stick out of the shrunk total covariance; 0 to C − 1. Compare with the null.",
    ),
    "ncm_accuracy": share(
        "Nearest-mean accuracy",
        "Share of test images whose nearest class mean, of train and val, is that of their class.",
    ),
}
