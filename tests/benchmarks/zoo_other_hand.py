"""Models of the zoo of other libraries that are written by hand: recurrent, tabular, recommender, audio, graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class LSTMClassifier(nn.Module):
    """Tokens to classes by a two-layer bidirectional LSTM."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(99, 24)
        self.lstm = nn.LSTM(24, hidden, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        return self.head(states.mean(1))


class GRUClassifier(nn.Module):
    """Sequences to classes by the last state of a GRU."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(16, hidden, 2, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(x)
        return self.head(last[-1])


class CellForecaster(nn.Module):
    """A loop over an LSTMCell."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.cell, self.head, self.hidden = nn.LSTMCell(8, hidden), nn.Linear(hidden, 8), hidden

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.hidden)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


class LSTMForecaster(nn.Module):
    """Encoder and decoder: the decoder starts from the encoder's states."""

    def __init__(self, hidden: int = 32, steps: int = 4) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(8, hidden, batch_first=True), nn.LSTM(8, hidden, batch_first=True)
        self.head, self.steps = nn.Linear(hidden, 8), steps

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        last, out = x[:, -1:], []
        for _ in range(self.steps):
            y, state = self.decoder(last, state)
            last = self.head(y)
            out.append(last)
        return torch.cat(out, 1)


class ChompBlock(nn.Module):
    """Two causal convolutions with weight norm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.first = weight_norm(nn.Conv1d(inputs, outputs, 3, padding=self.pad, dilation=dilation))
        self.second = weight_norm(nn.Conv1d(outputs, outputs, 3, padding=self.pad, dilation=dilation))
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(F.relu(self.first(x)[:, :, : -self.pad].contiguous()))
        y = self.dropout(F.relu(self.second(y)[:, :, : -self.pad].contiguous()))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class TCN(nn.Module):
    """Temporal convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ChompBlock(8, 32, 1), ChompBlock(32, 32, 2), ChompBlock(32, 32, 4))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, :, -1])


class NBeatsBlock(nn.Module):
    """A stack of layers with a backcast and a forecast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Linear(24, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        self.body, self.back, self.ahead = nn.Sequential(*layers), nn.Linear(width, 24), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return self.back(y), self.ahead(y)


class NBeats(nn.Module):
    """N-BEATS: every block explains a part of what the ones before left."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(NBeatsBlock(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        forecast = x.new_zeros(x.size(0), 6)
        for block in self.blocks:
            back, ahead = block(x)
            x, forecast = x - back, forecast + ahead
        return forecast


class DLinear(nn.Module):
    """Trend and season, each with a linear layer over time."""

    def __init__(self) -> None:
        super().__init__()
        self.season, self.trend = nn.Linear(24, 12), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        trend = F.avg_pool1d(F.pad(x, (2, 2), mode="replicate"), 5, 1)
        return (self.season(x - trend) + self.trend(trend)).transpose(1, 2)


class FTTransformer(nn.Module):
    """Each feature of a table is a token."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, width)), nn.Parameter(torch.randn(6, width))
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in (5, 7, 11))
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        tokens = numbers.unsqueeze(-1) * self.weight + self.bias
        named = torch.stack([table(categories[:, i]) for i, table in enumerate(self.tables)], 1)
        x = torch.cat([self.cls.expand(numbers.shape[0], -1, -1), tokens, named], 1)
        return self.head(self.encoder(x)[:, 0])


class GatedLayer(nn.Module):
    """Linear layer, norm and gated linear unit, as in TabNet."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, 2 * outputs, bias=False), nn.BatchNorm1d(2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.norm(self.linear(x)), -1)


class TabNetLike(nn.Module):
    """Steps that each look at a soft choice of features."""

    def __init__(self, features: int = 12, width: int = 16, steps: int = 3) -> None:
        super().__init__()
        self.norm, self.first = nn.BatchNorm1d(features), GatedLayer(features, 2 * width)
        self.masks = nn.ModuleList(nn.Linear(width, features) for _ in range(steps))
        self.layers = nn.ModuleList(GatedLayer(features, 2 * width) for _ in range(steps))
        self.head, self.width = nn.Linear(width, 3), width

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        prior, total, loss = torch.ones_like(x), 0, 0
        attention = self.first(x)[:, self.width :]
        for mask, layer in zip(self.masks, self.layers, strict=True):
            chosen = torch.softmax(mask(attention) * prior, -1)
            prior = prior * (1.3 - chosen)
            decision, attention = layer(chosen * x).split(self.width, -1)
            total = total + F.relu(decision)
            loss = loss + (chosen * torch.log(chosen + 1e-5)).sum(-1).mean()
        return self.head(total), loss


class TableMLP(nn.Module):
    """Embeddings of categories beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, 8) for n in (5, 7, 11))
        layers = [nn.Linear(30, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(32, 2)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        parts = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        return self.head(self.body(torch.cat([numbers, *parts], 1)))


class DLRM(nn.Module):
    """Deep learning recommendation model: products of all pairs of features."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum") for n in (20, 30))
        self.bottom = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, width), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(width + 3, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())
        self.register_buffer("rows", torch.tensor([1, 2, 2]))
        self.register_buffer("columns", torch.tensor([0, 0, 1]))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        features = torch.stack([x, *(t(sparse[:, i]) for i, t in enumerate(self.tables))], 1)
        pairs = torch.bmm(features, features.transpose(1, 2))[:, self.rows, self.columns]
        return self.top(torch.cat([x, pairs], 1))


class DeepFM(nn.Module):
    """Factorisation machine beside a deep network."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(100, width), nn.Embedding(100, 1)
        self.deep = nn.Sequential(nn.Linear(4 * width, 32), nn.ReLU(), nn.Linear(32, 1))
        self.register_buffer("offsets", torch.tensor([0, 25, 50, 75]))

    def forward(self, fields: Tensor) -> Tensor:
        ids = fields + self.offsets
        vectors = self.embedding(ids)
        pairs = 0.5 * (vectors.sum(1) ** 2 - (vectors**2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.linear(ids).sum(1) + pairs + self.deep(vectors.flatten(1)))


class TwoTowers(nn.Module):
    """Users and items side by side; the score is the cosine of their vectors."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.user = nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, width), nn.ReLU(), nn.Linear(width, 16))
        self.item = nn.Sequential(nn.Embedding(70, 24), nn.Linear(24, width), nn.ReLU(), nn.Linear(width, 16))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.scale.exp() * F.normalize(self.user(user), dim=-1) @ F.normalize(self.item(item), dim=-1).T


class SpectrogramCNN(nn.Module):
    """Waves to spectrograms to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 16), (16, 32)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(32, 10)

    def forward(self, wave: Tensor) -> Tensor:
        power = torch.stft(wave, 64, 32, window=self.window, return_complex=True).abs() ** 2
        return self.head(self.body(torch.log1p(power).unsqueeze(1)).mean((2, 3)))


class SeparatorBlock(nn.Module):
    """One-by-one convolution, depthwise convolution, residual and skip, as in Conv-TasNet."""

    def __init__(self, width: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(width, hidden, 1), nn.PReLU(), nn.GroupNorm(1, hidden)),
            *(nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden), nn.PReLU()),
            nn.GroupNorm(1, hidden),
        )
        self.residual, self.skip = nn.Conv1d(hidden, width, 1), nn.Conv1d(hidden, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return x + self.residual(y), self.skip(y)


class ConvTasNetLike(nn.Module):
    """Separates a wave into two."""

    def __init__(self, filters: int = 32, width: int = 24, hidden: int = 48) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, filters, 16, 8, bias=False)
        self.decoder = nn.ConvTranspose1d(filters, 1, 16, 8, bias=False)
        self.entry = nn.Sequential(nn.GroupNorm(1, filters), nn.Conv1d(filters, width, 1))
        self.blocks = nn.ModuleList(SeparatorBlock(width, hidden, 2**i) for i in range(3))
        self.mask = nn.Sequential(nn.PReLU(), nn.Conv1d(width, 2 * filters, 1), nn.Sigmoid())

    def forward(self, wave: Tensor) -> Tensor:
        code = self.encoder(wave.unsqueeze(1))
        x, total = self.entry(code), 0.0
        for block in self.blocks:
            x, skip = block(x)
            total = total + skip
        masks = self.mask(total).view(wave.shape[0], 2, code.shape[1], -1)
        apart = (masks * code.unsqueeze(1)).flatten(0, 1)
        return self.decoder(apart).view(wave.shape[0], 2, -1)


class CRNN(nn.Module):
    """Convolutions over a spectrogram, then a bidirectional GRU over time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d((2, 1)))
        self.gru, self.head = nn.GRU(16 * 16, 32, batch_first=True, bidirectional=True), nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y.permute(0, 3, 1, 2).flatten(2)
        return F.log_softmax(self.head(self.gru(y)[0]), -1)


class GCNLayer(nn.Module):
    """Sums over neighbours, divided by the roots of the degrees."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.bias = nn.Linear(inputs, outputs, bias=False), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        ones = torch.ones_like(source, dtype=x.dtype)
        degree = torch.zeros(x.size(0), dtype=x.dtype, device=x.device).index_add(0, target, ones).clamp(min=1)
        norm = degree.rsqrt()
        messages = self.linear(x)[source] * (norm[source] * norm[target]).unsqueeze(-1)
        return torch.zeros(x.size(0), messages.size(1), dtype=x.dtype).index_add(0, target, messages) + self.bias


class GCN(nn.Module):
    """Two layers of graph convolution."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = GCNLayer(12, width), GCNLayer(width, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x, edges)), edges)


class GAT(nn.Module):
    """Graph attention: a softmax over the edges into each node."""

    def __init__(self, width: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.linear, self.heads, self.width = nn.Linear(12, heads * width, bias=False), heads, width
        self.source = nn.Parameter(torch.randn(1, heads, width))
        self.target = nn.Parameter(torch.randn(1, heads, width))
        self.head = nn.Linear(heads * width, 5)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        h = self.linear(x).view(-1, self.heads, self.width)
        score = F.leaky_relu((h * self.source).sum(-1)[source] + (h * self.target).sum(-1)[target], 0.2)
        weight = (score - score.max()).exp()
        total = torch.zeros(x.size(0), self.heads, dtype=x.dtype).index_add_(0, target, weight)
        weight = weight / (total[target] + 1e-9)
        messages = h[source] * weight.unsqueeze(-1)
        out = torch.zeros_like(h).scatter_add(0, target.view(-1, 1, 1).expand_as(messages), messages)
        return self.head(F.elu(out.flatten(1)))


class SAGE(nn.Module):
    """GraphSAGE: a node and the mean over its neighbours, side by side."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, width), nn.Linear(2 * width, 5)

    def mean(self, x: Tensor, edges: Tensor) -> Tensor:
        index = edges[1].unsqueeze(-1).expand(-1, x.size(1))
        zeros = torch.zeros_like(x)
        return zeros.scatter_reduce(0, index, x[edges[0]], "mean", include_self=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = F.relu(self.first(torch.cat([x, self.mean(x, edges)], -1)))
        return self.second(torch.cat([h, self.mean(h, edges)], -1))


class ConvNormAct(nn.Sequential):
    """Convolution, BatchNorm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class C2f(nn.Module):
    """The block of YOLOv8: a split, and everything since side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.half = outputs // 2
        self.entry, self.exit = ConvNormAct(inputs, outputs), ConvNormAct(3 * self.half, outputs)
        self.body = nn.Sequential(ConvNormAct(self.half, self.half, 3), ConvNormAct(self.half, self.half, 3))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.entry(x).split((self.half, self.half), 1))
        parts.append(parts[-1] + self.body(parts[-1]))
        return self.exit(torch.cat(parts, 1))


class YoloLike(nn.Module):
    """Two scales, each with a head that is decoded on a grid in evaluation mode."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNormAct(3, 16, 3, 2), ConvNormAct(16, 32, 3, 2), C2f(32, 32))
        self.down = nn.Sequential(ConvNormAct(32, 48, 3, 2), C2f(48, 48))
        self.up, self.join = nn.Upsample(scale_factor=2), C2f(80, 32)
        self.heads = nn.ModuleList(nn.Conv2d(n, 3 * (5 + classes), 1) for n in (32, 48))
        self.outputs = 5 + classes
        self.register_buffer("anchors", torch.rand(2, 1, 3, 1, 1, 2) * 16 + 8)
        self.strides = (4, 8)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        fine = self.stem(x)
        coarse = self.down(fine)
        fine = self.join(torch.cat([self.up(coarse), fine], 1))
        found, decoded = [], []
        for i, (head, level) in enumerate(zip(self.heads, (fine, coarse), strict=True)):
            y = head(level)
            n, _, height, width = y.shape
            y = y.view(n, 3, self.outputs, height, width).permute(0, 1, 3, 4, 2).contiguous()
            found.append(y)
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            grid = torch.stack((columns, rows), -1).view(1, 1, height, width, 2).to(y)
            p = y.sigmoid()
            place = (p[..., :2] * 2 - 0.5 + grid) * self.strides[i]
            size = (p[..., 2:4] * 2) ** 2 * self.anchors[i]
            decoded.append(torch.cat((place, size, p[..., 4:]), -1).view(n, -1, self.outputs))
        return found if self.training else torch.cat(decoded, 1)
