//! Recurrent layers.
//!
//! burn-nn's own loops write into f32 buffers, so that these have loops of their own, which compute what
//! burn-nn's do and in the same order.

use burn::module::Module;
use burn::nn::{BiGru, BiLstm, BiRnn, GateController, Gru, Lstm, LstmState, Rnn, RnnState};
use burn::tensor::Tensor;

use super::operands::{as_it_is, module_in};
use crate::promote::widen;
use crate::{Op, Site, cast, observe, param_dtype, widest};

/// Runs a loop over time in the dtype that the policy gives recurrent layers, as one operation.
///
/// `layer` is cast, and so are the input `[batch, length, width]` and the states `[batch, hidden]`.
/// `body` gives the hidden states in the order of the input and then the states it ends with, each
/// `[batch, hidden]`.
fn recurrent<M: Module>(
    layer: &M,
    gate: &GateController,
    x: Tensor<3>,
    states: Vec<Tensor<2>>,
    body: impl Fn(&M, Tensor<3>, Vec<Tensor<2>>) -> Vec<Tensor<2>>,
) -> (Tensor<3>, Vec<Tensor<2>>) {
    let [_, length, _] = x.dims();
    let site: Site<'_> = (&gate.input_transform.weight).into();
    let all: Tensor<3> = observe(Op::Rnn, site, (x, states), |(x, states)| {
        let x = cast(Op::Rnn, x);
        let weight = param_dtype(Op::Rnn, &gate.input_transform.weight);
        let dtype = widest(x.dtype(), weight);
        let states = states
            .into_iter()
            .map(|state| widen(cast(Op::Rnn, state), dtype));
        let layer = module_in(Op::Rnn, layer, dtype);
        let steps = body(&layer, widen(x, dtype), states.collect());
        Tensor::stack(steps, 1)
    });
    let [_, steps, _] = all.dims();
    let states = (length..steps).map(|step| all.clone().narrow(1, step, 1).squeeze_dim(1));
    let states = states.collect();
    (all.narrow(1, 0, length), states)
}

/// What there is at each time, `[batch, width]`, with its place in the sequence.
fn times(x: Tensor<3>, reverse: bool) -> Vec<(usize, Tensor<2>)> {
    let mut times: Vec<_> = x
        .iter_dim(1)
        .map(|x| x.squeeze_dim(1))
        .enumerate()
        .collect();
    if reverse {
        times.reverse();
    }
    times
}

/// The state at the beginning: the given one, or zeros.
fn initial(state: Option<Tensor<2>>, x: &Tensor<3>, hidden: usize) -> Tensor<2> {
    let [batch, ..] = x.dims();
    state.unwrap_or_else(|| Tensor::zeros([batch, hidden], (&x.device(), x.dtype())))
}

/// Swaps batch and time if the sequence comes first.
fn batch_first(x: Tensor<3>, is_first: bool) -> Tensor<3> {
    match is_first {
        true => x,
        false => x.swap_dims(0, 1),
    }
}

/// The states of the two directions of a bidirectional layer.
fn split(state: Option<Tensor<3>>) -> [Option<Tensor<2>>; 2] {
    let direction = |place| {
        let state = state.clone()?;
        Some(state.narrow(0, place, 1).squeeze_dim(0))
    };
    [direction(0), direction(1)]
}

fn clipped(x: Tensor<2>, clip: Option<f64>) -> Tensor<2> {
    match clip {
        Some(clip) => x.clamp(-clip, clip),
        None => x,
    }
}

fn idle(gate: &GateController, x: &Tensor<3>) -> bool {
    as_it_is(x, &gate.input_transform.weight)
}

/// [`Rnn::forward`] in the compute dtype.
///
/// # Shapes
/// - `x`: `[batch, length, d_input]`, batch and length swapped unless the layer is batch-first
/// - output: the same with `d_hidden`
///
/// # Panics
///
/// As the layer's `forward`.
pub fn rnn(layer: &Rnn, x: Tensor<3>, state: Option<RnnState<2>>) -> (Tensor<3>, RnnState<2>) {
    if idle(&layer.gate, &x) {
        return layer.forward(x, state);
    }
    let x = batch_first(x, layer.batch_first);
    let state = state.map(|state| state.hidden);
    let (output, hidden) = rnn_direction(layer, x, state, layer.reverse);
    (
        batch_first(output, layer.batch_first),
        RnnState::new(hidden),
    )
}

fn rnn_direction(
    layer: &Rnn,
    x: Tensor<3>,
    state: Option<Tensor<2>>,
    reverse: bool,
) -> (Tensor<3>, Tensor<2>) {
    let states = vec![initial(state, &x, layer.d_hidden)];
    let (output, states) = recurrent(layer, &layer.gate, x, states, |layer, x, states| {
        let [mut hidden]: [_; 1] = states.try_into().expect("one state");
        let mut steps = Vec::new();
        for (_, x) in times(x, reverse) {
            let sum = layer.gate.gate_product(x, hidden);
            hidden = clipped(layer.hidden_activation.forward(sum), layer.clip);
            steps.push(hidden.clone());
        }
        in_order(steps, reverse, [hidden])
    });
    (output, only(states))
}

/// The hidden states in the order of the input, and what a loop ends with.
fn in_order<const N: usize>(
    mut steps: Vec<Tensor<2>>,
    reverse: bool,
    ends: [Tensor<2>; N],
) -> Vec<Tensor<2>> {
    if reverse {
        steps.reverse();
    }
    steps.extend(ends);
    steps
}

fn only(states: Vec<Tensor<2>>) -> Tensor<2> {
    states.into_iter().next().expect("one state")
}

/// [`BiRnn::forward`] in the compute dtype.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn bi_rnn(layer: &BiRnn, x: Tensor<3>, state: Option<RnnState<3>>) -> (Tensor<3>, RnnState<3>) {
    if idle(&layer.forward.gate, &x) {
        return layer.forward(x, state);
    }
    let x = batch_first(x, layer.batch_first);
    let [forward, reverse] = split(state.map(|state| state.hidden));
    let (first, forward) = rnn_direction(&layer.forward, x.clone(), forward, false);
    let (second, reverse) = rnn_direction(&layer.reverse, x, reverse, true);
    let output = batch_first(Tensor::cat(vec![first, second], 2), layer.batch_first);
    (
        output,
        RnnState::new(Tensor::stack(vec![forward, reverse], 0)),
    )
}

/// [`Gru::forward`] in the compute dtype.
///
/// # Shapes
/// - `x`: `[batch, length, d_input]`
/// - output: `[batch, length, d_hidden]`
///
/// # Panics
///
/// As the layer's `forward`.
pub fn gru(layer: &Gru, x: Tensor<3>, state: Option<Tensor<2>>) -> Tensor<3> {
    if idle(&layer.update_gate, &x) {
        return layer.forward(x, state);
    }
    gru_direction(layer, x, state, false).0
}

fn gru_direction(
    layer: &Gru,
    x: Tensor<3>,
    state: Option<Tensor<2>>,
    reverse: bool,
) -> (Tensor<3>, Tensor<2>) {
    let states = vec![initial(state, &x, layer.d_hidden)];
    let (output, states) = recurrent(layer, &layer.update_gate, x, states, |layer, x, states| {
        let [mut hidden]: [_; 1] = states.try_into().expect("one state");
        let mut steps = Vec::new();
        for (_, x) in times(x, reverse) {
            let gate = |gate: &GateController| {
                let (input, state) = gate_parts(gate, x.clone(), hidden.clone());
                layer.gate_activation.forward(input + state)
            };
            let (update, reset) = (gate(&layer.update_gate), gate(&layer.reset_gate));
            let sum = if layer.reset_after {
                let (input, state) = gate_parts(&layer.new_gate, x, hidden.clone());
                input + reset.mul(state)
            } else {
                let kept = hidden.clone().mul(reset);
                let (input, state) = gate_parts(&layer.new_gate, x, kept);
                input + state
            };
            let candidate = layer.hidden_activation.forward(sum);
            let renewed = candidate.mul(update.clone().neg().add_scalar(1.0));
            hidden = clipped(renewed + update.mul(hidden), layer.clip);
            steps.push(hidden.clone());
        }
        in_order(steps, reverse, [hidden])
    });
    (output, only(states))
}

/// The parts of a gate that come of the input and of the hidden state.
fn gate_parts(gate: &GateController, x: Tensor<2>, hidden: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let part = |layer: &burn::nn::Linear, x: Tensor<2>| {
        let product = x.matmul(layer.weight.val());
        match &layer.bias {
            Some(bias) => product + bias.val().unsqueeze(),
            None => product,
        }
    };
    (
        part(&gate.input_transform, x),
        part(&gate.hidden_transform, hidden),
    )
}

/// [`BiGru::forward`] in the compute dtype.
///
/// # Panics
///
/// As the layer's `forward`.
pub fn bi_gru(layer: &BiGru, x: Tensor<3>, state: Option<Tensor<3>>) -> (Tensor<3>, Tensor<3>) {
    if idle(&layer.forward.update_gate, &x) {
        return layer.forward(x, state);
    }
    let x = batch_first(x, layer.batch_first);
    let [forward, reverse] = split(state);
    let (first, forward) = gru_direction(&layer.forward, x.clone(), forward, false);
    let (second, reverse) = gru_direction(&layer.reverse, x, reverse, true);
    let output = batch_first(Tensor::cat(vec![first, second], 2), layer.batch_first);
    (output, Tensor::stack(vec![forward, reverse], 0))
}

/// [`Lstm::forward`] in the compute dtype, the state of its cells included, as in PyTorch. For
/// sequences that bf16's eight bits are too few to sum up over, give [`Op::Rnn`] or the module f32.
///
/// # Shapes
/// - `x`: `[batch, length, d_input]`, batch and length swapped unless the layer is batch-first
/// - output: the same with `d_hidden`
///
/// # Panics
///
/// As the layer's `forward`.
pub fn lstm(layer: &Lstm, x: Tensor<3>, state: Option<LstmState<2>>) -> (Tensor<3>, LstmState<2>) {
    if idle(&layer.input_gate, &x) {
        return layer.forward(x, state);
    }
    let x = batch_first(x, layer.batch_first);
    let state = state.map(|state| (state.cell, state.hidden)).unzip();
    let (output, state) = lstm_direction(layer, x, state, layer.reverse);
    (batch_first(output, layer.batch_first), state)
}

fn lstm_direction(
    layer: &Lstm,
    x: Tensor<3>,
    (cell, hidden): (Option<Tensor<2>>, Option<Tensor<2>>),
    reverse: bool,
) -> (Tensor<3>, LstmState<2>) {
    let states = vec![
        initial(cell, &x, layer.d_hidden),
        initial(hidden, &x, layer.d_hidden),
    ];
    let (output, states) = recurrent(layer, &layer.input_gate, x, states, |layer, x, states| {
        let [mut cell, mut hidden]: [_; 2] = states.try_into().expect("two states");
        let mut steps = Vec::new();
        for (_, x) in times(x, reverse) {
            let gate = |gate: &GateController| {
                let sum = gate.gate_product(x.clone(), hidden.clone());
                layer.gate_activation.forward(sum)
            };
            let input = gate(&layer.input_gate);
            let forget = match &layer.forget_gate {
                Some(forget) if !layer.input_forget => gate(forget),
                _ => input.clone().neg().add_scalar(1.0),
            };
            let output = gate(&layer.output_gate);
            let candidate = layer.cell_gate.gate_product(x, hidden);
            let candidate = layer.cell_activation.forward(candidate);
            cell = clipped(forget * cell + input * candidate, layer.clip);
            hidden = output * layer.hidden_activation.forward(cell.clone());
            steps.push(hidden.clone());
        }
        in_order(steps, reverse, [cell, hidden])
    });
    let [cell, hidden]: [_; 2] = states.try_into().expect("two states");
    (output, LstmState::new(cell, hidden))
}

/// [`BiLstm::forward`] in the compute dtype, as [`lstm`].
///
/// # Panics
///
/// As the layer's `forward`.
pub fn bi_lstm(
    layer: &BiLstm,
    x: Tensor<3>,
    state: Option<LstmState<3>>,
) -> (Tensor<3>, LstmState<3>) {
    if idle(&layer.forward.input_gate, &x) {
        return layer.forward(x, state);
    }
    let x = batch_first(x, layer.batch_first);
    let (cell, hidden) = state.map(|state| (state.cell, state.hidden)).unzip();
    let ([cell_1, cell_2], [hidden_1, hidden_2]) = (split(cell), split(hidden));
    let (first, forward) = lstm_direction(&layer.forward, x.clone(), (cell_1, hidden_1), false);
    let (second, reverse) = lstm_direction(&layer.reverse, x, (cell_2, hidden_2), true);
    let output = batch_first(Tensor::cat(vec![first, second], 2), layer.batch_first);
    let both = |forward, reverse| Tensor::stack(vec![forward, reverse], 0);
    let state = LstmState::new(
        both(forward.cell, reverse.cell),
        both(forward.hidden, reverse.hidden),
    );
    (output, state)
}
