"""How to read measures that belong together, in plain English; single ones are explained in `metrics`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Measures that are read alike.

    Attributes:
        title: What they have in common.
        reading: How to read them, and what they cannot say.
        metrics: Their names, without the endings of variants.
    """

    title: str
    reading: str
    metrics: tuple[str, ...]


FAMILIES: tuple[Family, ...] = (
    Family(
        "Kernel alignment: do two layers find the same images alike?",
        "Both layers give every pair of images a similarity; these measures say how far the two lists "
        "agree. 1 is agreement up to rotation and scale. Read the debiased value: 0 then means unrelated, "
        "while the plain one is above 0 for any two layers and the more so the fewer the images (its null "
        "says by how much). Then read the one without leading components. Where it is much lower, the "
        "layers agree in one coarse direction, such as brightness, and not in the rest.",
        ("cka", "cka_debiased", "cka_debiased_rest"),
    ),
    Family(
        "Rotation: how far is one layer from being the other, turned?",
        "An angle: 0 is the same cloud of images up to rotation and scale, π/2 is as far as can be. High "
        "here means unlike. Unrelated wide layers do not reach π/2, because a rotation always finds "
        "something to fit: what counts is how far the angle lies below its null.",
        ("procrustes",),
    ),
    Family(
        "Canonical correlation: can one layer be read from the other by a linear map?",
        "All directions that hold most of the variance count alike, however little variance each of them "
        "has, so these measures see detail that kernel alignment passes over. 1 means that each layer is a "
        "linear map of the other. They rise with the number of directions for every pair, related or not: "
        "only the distance from the null counts, and with fewer than ten images a direction they are left "
        "empty.",
        ("svcca", "pwcca"),
    ),
    Family(
        "Pairs and neighbours: is the order of similarities the same?",
        "Only ranks count, not distances. RSA compares the order of all pairs of images, most of which are "
        "far apart; mutual neighbours compare the few nearest images, which decide retrieval. Two layers "
        "may agree in one and not in the other. Chance is 0 for the first, and k of the other images for "
        "the second.",
        ("rsa", "mutual_knn"),
    ),
    Family(
        "Variance: how much of it lies between classes?",
        "Shares of variance, debiased, so that 0 is no class signal however many features or images there "
        "are. High means invariance: images of a class lie close and what tells them apart is lost or "
        "small. That helps a task about these classes and harms one about anything else, so neither end is "
        "better. The within/between ratio says the same as a quotient and is drawn on a logarithmic axis.",
        ("icc", "omega_squared", "within_between", "class_separation", "within_class_r2"),
    ),
    Family(
        "Class distances: how wide are classes beside the distances between them?",
        "Spread of a class over the distance to another, at the median pair of classes: low is well apart. "
        "The plain one counts spread in all directions, the directional one only along the line between the "
        "two classes. A layer may be high in the first and low in the second: it then varies a lot inside "
        "classes, but not in a way that confuses them. Equal steps of the axis are equal factors.",
        ("cdnv", "directional_cdnv"),
    ),
    Family(
        "Collapse: has training squeezed classes to points?",
        "The four signs of neural collapse, and an index that can be compared between layers. Most depend "
        "on width and number of images and look like collapse on noise as well: read each beside its null, "
        "and only where ICC is above its own.",
        ("vci", "nc1", "nc2_norms", "nc2_angles", "nc3", "nc4"),
    ),
    Family(
        "Cosines: how alike are directions of features?",
        "Lengths are left out. Features after a ReLU point all one way, so that any two images have a high "
        "cosine: read the gap between pairs of one class and of two, best after centring.",
        ("cosine_intra", "cosine_inter", "cosine_gap", "alignment", "uniformity"),
    ),
    Family(
        "Neighbours: are the nearest images of the same class?",
        "Nothing is fitted. These measures say what a search by similarity would return, and fall when a "
        "class has few images even if the features stay the same: compare layers on the same images only.",
        ("silhouette", "recall_at_1", "recall_at_5", "recall_at_10", "map_at_r"),
    ),
    Family(
        "Changes of the image: what does a layer ignore?",
        "Every image is changed step by step, and its features are compared with those of the unchanged "
        "image. Invariance is good or bad only for a task: a layer that ignores colour cannot tell ripe from "
        "green. Compare one perturbation across layers and models; strengths of different perturbations have "
        "no common scale. Whitened measures count directions alike, shares of variance large ones more. A "
        "random network is not invariant where depth has made it chaotic: it moves as far as the null.",
        ("whitened_cosine", "mahalanobis", "perturbation_variance", "lidar", "target_invariance"),
    ),
    Family(
        "Pixels: what of the image can be read back?",
        "A linear map is fitted from each layer to the image at 8 × 8 cells, or a small decoder trained to "
        "make it at 32 × 32, through the same number of features everywhere. It bounds from below what the "
        "layer holds: what is not read may be there in another form. Compare layers and models at equal "
        "input size, beside random init, which keeps much of the image in its first layers without having "
        "learnt anything. Background over foreground error above 1 says that the background is lost first.",
        ("pixel_r2", "foreground_error", "background_error", "background_ratio"),
    ),
    Family(
        "Transfer: what is pretraining worth for a task, and which level carries it?",
        "A head on the deepest block is trained, with the backbone or on top of it, from states in which "
        "some blocks are kept and the others replaced. All gains are over scratch in the same trial, at the "
        "same budget. Learning rates are chosen on val in the first trial of every state. A downloaded "
        "backbone is one checkpoint: its interval is over trials and indicative. Shares are empty where the "
        "whole gain is within noise.",
        (
            "normalised_error",
            "mean_iou",
            "ap",
            "ap50",
            "ap75",
            "gain",
            "recovered_fraction",
            "high_level_share",
            "depth_90",
            "reuse_share",
            "co_adaptation",
            "steps_to_90",
            "distance_moved",
            "cka_kept",
            "rewind_drop",
        ),
    ),
    Family(
        "Detection errors: why are boxes wrong?",
        "Costs say what AP50 would gain if errors of one type alone were put right. They weigh an error by "
        "where it stands in the ranking, and do not add up: what is left after one is mended is worth more. "
        "Shares say what the best boxes of each class are, as many as it has objects, all counting alike; "
        "they add up to 1. A detector that finds more has fewer errors of every type: compare costs and "
        "shares of detectors of about equal AP, or each with its own sum. The null gives every image the "
        "objects of another one: what is found by knowing where things tend to be. Repairs say what is wrong "
        "with misplaced boxes: where they are, how large, or which shape.",
        (
            "error_loc",
            "error_cls",
            "error_dupe",
            "error_bkg",
            "error_both",
            "error_miss",
            "error_false_positives",
            "error_false_negatives",
            "hoiem_right",
            "hoiem_localisation",
            "hoiem_similar",
            "hoiem_other",
            "hoiem_background",
            "hoiem_none",
            "repaired_centre",
            "repaired_scale",
            "repaired_aspect",
        ),
    ),
    Family(
        "Boxes: what is there, and where does it end?",
        "Features are read inside regions that are given: true boxes, and copies shifted and scaled until "
        "they overlap their box by so much. No detector is trained: scores say what a linear head is told "
        "once it looks there, not what a detector would find. A coarse map has few positions of its own, "
        "and so has random init at the same tap: compare with it. A level may tell what and not where, or "
        "where and not what. Intervals draw whole images, since regions of one image are not independent.",
        ("what_accuracy", "what_balanced_accuracy", "where_accuracy", "offset_r2", "offset_component_r2"),
    ),
    Family(
        "Findings: what do the rules say?",
        "A finding is supported if all required rules hold with their whole interval, refuted if a falsifier "
        "holds after Holm's correction, and inconclusive otherwise. Units are pretraining seeds.",
        ("verdict", "rule_value"),
    ),
    Family(
        "Trainings: did they go well?",
        "Arms differ in nothing but the objective: the same first weights, images, views and schedule for "
        "each seed. Losses of different objectives have no common scale. What an arm has learnt is said by "
        "the probes of its checkpoint beside random init, and differences between arms need several seeds.",
        ("pretraining_loss", "images_per_s"),
    ),
    Family(
        "Made images: what does a layer not tell from the true image?",
        "Images are made from a layer's features, by a trained decoder or by a search for an image with "
        "these features, and compared with the true ones. What differs is what the layer does not tell "
        "apart, or what the making could not find: inversions are ranked only where all came to one "
        "residual, decoders within one budget. Training or the prior of the images adds what is common to "
        "all photographs. A random network is inverted well: invertible is not the same as useful.",
        ("image_r2", "psnr", "ssim", "gradient_deviation", "perceptual_distance", "feature_residual"),
    ),
    Family(
        "Concepts: which nameable directions raise a class?",
        "A direction is fitted that tells images of a concept from random ones, and each image of a class is "
        "asked whether its score rises along it. Compare with random sets in the concept's place: close to a "
        "linear probe every direction, also a random one, has a score near 0 or 1.",
        ("tcav",),
    ),
    Family(
        "Places: does a probe find its class where it is?",
        "The score of a probe is taken apart by places of the image and compared with a mask or box. Four "
        "questions of one map: how much of it lies inside, whether its highest pixels do, how well it can be "
        "cut out, and whether its peak hits. Three lines keep them honest: a constant map, which scores the "
        "area; a Gaussian in the middle, because photographs have their subject there; and probes of "
        "permuted labels, which look where features are large. A probe may find the thing and not know its "
        "class, or read the class from the surroundings: the accuracy of each probe stands in its params.",
        ("energy_inside", "relevance_rank", "best_iou", "pointing_game"),
    ),
    Family(
        "Cascading reset: does a map depend on what was learnt?",
        "Blocks get random weights from the tap downwards, one more at every step, while the probe stays. A "
        "map that is made by what the model has learnt falls to the likeness of maps of different images; "
        "one that hardly changes is an edge detector, however well it is placed.",
        ("cascade_spearman", "cascade_ssim"),
    ),
    Family(
        "Spectrum: over how many directions do features spread?",
        "Classes play no part. High means many directions in use. All of these depend on the number of "
        "images and on the width, and none of them is good or bad by itself.",
        ("effective_rank", "participation_ratio", "rankme", "alpha_req", "two_nn"),
    ),
    Family(
        "Transfer scores: how well would a linear head do?",
        "Guesses made without training a head. They rank taps and models on the same images; their units "
        "mean nothing elsewhere.",
        ("logme", "h_score", "ncm_accuracy"),
    ),
)
