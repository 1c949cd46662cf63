"""Facts about measures of tasks that are learnt from a backbone, whole and in part."""

from __future__ import annotations

from probekit.results.metric import MetricFacts, share

TRANSFER_MEASURES: dict[str, MetricFacts] = {
    "normalised_error": MetricFacts(
        "Landmark error",
        "of the size of the points' box",
        False,
        0.0,
        None,
        "Mean distance of the points that are there from where the task says they are, divided by the square "
        "root of the area of the box around them. The null is the mean shape of the training images.",
    ),
    "five_shot_accuracy": share(
        "5-way 5-shot accuracy",
        "Share of query images that go to their class by the nearest mean of 5 labelled images, among 5 "
        "classes at a time, averaged over episodes. Chance is one in five, whatever the number of classes. "
        "The interval is over classes: episodes share images, so that one over them would be too narrow.",
        chance=False,
    ),
    "one_shot_accuracy": share(
        "5-way 1-shot accuracy",
        "The same with one labelled image of each class: the first of the 5.",
        chance=False,
    ),
    "mean_iou": MetricFacts(
        "Mean IoU",
        "",
        True,
        0.0,
        1.0,
        "Intersection over union of each class that occurs in test, over all of its pixels, then the mean "
        "over classes; pixels without a class do not count. Rare classes weigh as much as frequent ones.",
    ),
    "gain": MetricFacts(
        "Gain over scratch",
        "in units of the task's metric",
        True,
        None,
        None,
        "How much better than training from scratch, in the same trial, turned so that more is better. It "
        "holds for this budget: with more steps or images scratch catches up.",
    ),
    "recovered_fraction": MetricFacts(
        "Recovered fraction",
        "",
        True,
        None,
        None,
        "Gain with some blocks kept over the gain of the whole backbone: 1 says that the others need not "
        "have been pretrained, below 0 that what is kept hurts without them. Empty where the whole gain is "
        "within noise. A curve says where gain comes from only beside the one with matched statistics.",
        ratio=True,
    ),
    "high_level_share": MetricFacts(
        "High-level share",
        "",
        None,
        None,
        None,
        "Part of the whole gain that is lost when the high level alone is replaced. Compare it with that "
        "level's shares of parameters and operations, and only within one architecture.",
    ),
    "depth_90": MetricFacts(
        "Groups for 90 % of the gain",
        "",
        None,
        0.0,
        None,
        "The least number of first levels, stages or blocks that have to be kept for nine tenths of the "
        "whole gain, by the means over trials.",
    ),
    "reuse_share": MetricFacts(
        "Reuse share",
        "",
        None,
        None,
        None,
        "Part of the whole gain that is lost when every weight is drawn anew with the mean and deviation of "
        "its tensor: near 0, the scale of the weights was all that helped; near 1, features are reused.",
    ),
    "co_adaptation": MetricFacts(
        "Co-adaptation",
        "in units of the task's metric",
        None,
        None,
        None,
        "What a network loses when its first groups stay as they were trained on this task from scratch and "
        "the others are drawn and trained again: above 0, groups work only with those they know.",
    ),
    "steps_to_90": MetricFacts(
        "Steps to 90 %",
        "steps",
        False,
        0.0,
        None,
        "Steps until the metric on val has come nine tenths of the way from an answer without an image to "
        "where the whole backbone ends; straight lines between the steps that were looked at.",
    ),
    "distance_moved": MetricFacts(
        "Distance moved",
        "relative",
        None,
        0.0,
        None,
        "How far finetuning moved the weights of a group: length of the change over length of the weights. "
        "Groups in front of a norm layer can move without any effect.",
    ),
    "cka_kept": MetricFacts(
        "CKA before and after",
        "",
        None,
        None,
        1.0,
        "Likeness of a group's pooled output before and after finetuning, debiased linear CKA on test "
        "images: 1 if nothing changed but scale and rotation.",
    ),
    "rewind_drop": MetricFacts(
        "Lost when put back",
        "in units of the task's metric",
        None,
        None,
        None,
        "What the finetuned backbone loses on test when one group is put back to its weights before, at an "
        "earlier step, or to a draw, without further training: near 0, the group need not have moved.",
    ),
}
