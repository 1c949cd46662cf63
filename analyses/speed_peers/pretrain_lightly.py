"""MoCo v2 by lightly, as its documentation writes it: its transform, head, loss and memory bank.

The backbone is the narrow ResNet-10 of the other side, made from torchvision's parts.

# /// script
# dependencies = ["lightly", "torch", "torchvision"]
# ///
"""

from serve import images, serve

WIDTH = 16


def narrow_resnet10():
    """Return the backbone without its classifier: 3 × 3 stem of stride 2, four blocks, 128 features."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [1, 1, 1, 1])
    net.conv1, net.bn1 = nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH)
    net.maxpool, net.fc, net.inplanes = nn.Identity(), nn.Identity(), WIDTH
    for place in range(4):
        layer = net._make_layer(BasicBlock, WIDTH * 2**place, 1, 1 if place == 0 else 2)
        setattr(net, f"layer{place + 1}", layer)
    return net


def prepare(request):
    """A round trains on all images once."""
    import copy

    import torch
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    torch.set_num_threads(request["threads"])
    transform = MoCoV2Transform(input_size=request["size"])
    pictures = [Image.fromarray(one) for one in images(request)]

    class Pictures(Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, row):
            return transform(pictures[row])

    workers = request["workers"]
    loader = DataLoader(
        Pictures(), request["batch_size"], shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    net = narrow_resnet10().to(memory_format=torch.channels_last)
    head = MoCoProjectionHead(WIDTH * 8, WIDTH * 8, 128)
    key_net, key_head = copy.deepcopy(net), copy.deepcopy(head)
    deactivate_requires_grad(key_net)
    deactivate_requires_grad(key_head)
    criterion = NTXentLoss(temperature=0.2, memory_bank_size=(request["queue"], 128))
    optimiser = torch.optim.SGD([*net.parameters(), *head.parameters()], 0.03, 0.9, weight_decay=1e-4)

    def step():
        seen = 0
        for first, second in loader:
            first, second = (one.contiguous(memory_format=torch.channels_last) for one in (first, second))
            update_momentum(net, key_net, 0.99)
            update_momentum(head, key_head, 0.99)
            query = head(net(first))
            with torch.no_grad():
                key = key_head(key_net(second))
            loss = criterion(query, key)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            seen += len(first)
        return {"images": seen}

    step()
    return step


if __name__ == "__main__":
    serve(prepare)
