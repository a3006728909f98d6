//! How a dashboard is drawn, in whatever room there is.

use std::time::Duration;

use halfseg_eval::Curve;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph};

use super::state::State;

/// Columns from which on curves and numbers are side by side.
const WIDE: u16 = 76;
/// Columns of the numbers at least; where they need more, they get up to two fifths of all.
const NUMBERS: u16 = 34;
/// Rows that a curve needs.
const CURVE: u16 = 7;

/// Draws `state`.
pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    if area.width == 0 || area.height == 0 {
        return;
    }
    let lines = numbers(state);
    // What matters least goes first where there is no room.
    let foot = u16::from(area.height >= 4);
    let said = match area.height {
        0..12 => 0,
        12..24 => 3,
        _ => 7,
    };
    let [head, gauge, body, messages, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(area.height >= 2)),
        Constraint::Min(0),
        Constraint::Length(said),
        Constraint::Length(foot),
    ])
    .areas(area);
    let bold = Style::default().add_modifier(Modifier::BOLD);
    let title = Line::from(vec![
        Span::styled(state.title.clone(), bold),
        Span::raw(format!("  {}", state.about)),
    ]);
    frame.render_widget(Paragraph::new(title), head);
    draw_gauge(frame, state, gauge);
    draw_body(frame, state, &lines, body);
    draw_messages(frame, state, messages);
    let hint = match state.stopping {
        true => "stopping after this iteration; q or Ctrl-C again ends at once",
        false => "q or Ctrl-C: save and stop",
    };
    let dim = Style::default().add_modifier(Modifier::DIM);
    frame.render_widget(Paragraph::new(Span::styled(hint, dim)), keys);
}

fn draw_gauge(frame: &mut Frame<'_>, state: &State, area: Rect) {
    if area.height == 0 {
        return;
    }
    let (done, all, unit) = match state.evaluating {
        Some((done, all)) => (done as u64, all as u64, "pictures evaluated"),
        None => (state.iteration, state.iterations, "iterations"),
    };
    let share = done as f64 / all.max(1) as f64;
    let gauge = Gauge::default()
        .gauge_style(Style::default().fg(Color::Blue))
        .ratio(share.clamp(0.0, 1.0))
        .label(format!("{done} of {all} {unit}"));
    frame.render_widget(gauge, area);
}

fn draw_body(frame: &mut Frame<'_>, state: &State, lines: &[Line<'static>], area: Rect) {
    let text = Paragraph::new(lines.to_vec());
    if area.width >= WIDE && area.height >= CURVE {
        let longest = lines.iter().map(Line::width).max().unwrap_or(0) as u16 + 2;
        let room = NUMBERS.max(area.width / 5 * 2);
        let columns = Constraint::Length(longest.clamp(NUMBERS, room));
        let [curves, numbers] = Layout::horizontal([Constraint::Min(0), columns]).areas(area);
        draw_curves(frame, state, curves);
        frame.render_widget(text.block(Block::bordered()), numbers);
        return;
    }
    let rows = lines.len() as u16;
    if area.height >= rows + CURVE && area.width >= 30 {
        let [numbers, curves] =
            Layout::vertical([Constraint::Length(rows), Constraint::Min(0)]).areas(area);
        frame.render_widget(text, numbers);
        draw_curves(frame, state, curves);
        return;
    }
    frame.render_widget(text, area);
}

/// As many curves as have room, one below the other.
fn draw_curves(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let points = |curve: &Curve| curve.clone().into_points();
    let curves = [
        ("loss", points(&state.loss), Color::Blue),
        ("mIoU, %", state.miou.clone(), Color::Green),
        (
            "loss scale, power of 2",
            points(&state.scale),
            Color::Magenta,
        ),
    ];
    let known = curves.iter().filter(|(_, points, _)| !points.is_empty());
    let shown: Vec<_> = known
        .take(usize::from(area.height / CURVE).max(1))
        .collect();
    let parts = Layout::vertical(vec![Constraint::Fill(1); shown.len()]).split(area);
    for ((title, points, color), part) in shown.into_iter().zip(parts.iter()) {
        draw_curve(frame, title, points, *color, *part);
    }
}

fn draw_curve(frame: &mut Frame<'_>, title: &str, points: &[(f64, f64)], color: Color, area: Rect) {
    let finite = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite();
    let points: Vec<(f64, f64)> = points.iter().filter(finite).copied().collect();
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        match high - low > 1e-9 {
            true => [low, high],
            false => [low - 0.5, high + 0.5],
        }
    };
    let x = ends(&mut points.iter().map(|point| point.0));
    let y = ends(&mut points.iter().map(|point| point.1));
    let marked = points.len() < 20;
    let data = Dataset::default()
        .marker(if marked { Marker::Dot } else { Marker::Braille })
        .graph_type(GraphType::Line)
        .style(Style::default().fg(color))
        .data(&points);
    let label = |value: f64| Line::from(format!("{value:.4}").chars().take(6).collect::<String>());
    let whole = |value: f64| Line::from(format!("{value:.0}"));
    let chart = Chart::new(vec![data])
        .block(Block::bordered().title(title.to_owned()))
        .legend_position(None)
        .x_axis(Axis::default().bounds(x).labels(x.map(whole)))
        .y_axis(Axis::default().bounds(y).labels(y.map(label)));
    frame.render_widget(chart, area);
}

fn draw_messages(frame: &mut Frame<'_>, state: &State, area: Rect) {
    if area.height < 3 {
        return;
    }
    let rows = usize::from(area.height - 2);
    let first = state.messages.len().saturating_sub(rows);
    let lines: Vec<_> = state
        .messages
        .iter()
        .skip(first)
        .map(|line| Line::from(line.clone()))
        .collect();
    let block = Block::bordered().title("messages");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn numbers(state: &State) -> Vec<Line<'static>> {
    let pace = &state.pace;
    let known = |value: Option<f64>, text: &dyn Fn(f64) -> String| value.map_or("–".into(), text);
    let left = match state.left() {
        Some(left) if state.iteration > 0 => time(left),
        _ => "–".to_owned(),
    };
    let mut rows: Vec<(&str, String)> = vec![
        (
            "loss",
            known(state.shown_loss.get(), &|loss| format!("{loss:.4}")),
        ),
        (
            "accuracy",
            known(state.accuracy.get(), &|share| format!("{share:.1} %")),
        ),
        ("learning rate", format!("{:.3e}", state.lr)),
        ("loss scale", pace.scale.to_string()),
        (
            "skipped steps",
            match &pace.culprit {
                Some(culprit) => format!("{} ({culprit})", pace.skipped),
                None => pace.skipped.to_string(),
            },
        ),
        (
            "pictures/s",
            known(pace.images_per_second(), &|images| format!("{images:.2}")),
        ),
        (
            "data wait",
            known(pace.waited_percent(), &|percent| format!("{percent:.0} %")),
        ),
        ("since start", time(state.elapsed())),
        ("left", left),
    ];
    if let Some((_, last)) = state.miou.last() {
        rows.push(("mIoU", format!("{last:.2}")));
    }
    if let Some((at, best)) = state.best {
        rows.push(("best mIoU", format!("{best:.2} at {at}")));
    }
    let line = |(name, value): (&str, String)| {
        let dim = Style::default().add_modifier(Modifier::DIM);
        Line::from(vec![
            Span::styled(format!("{name:<14}"), dim),
            Span::raw(value),
        ])
    };
    rows.into_iter().map(line).collect()
}

/// Hours, minutes and seconds.
fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::progress::Pace;

    fn state() -> State {
        let mut state = State {
            title: "deeplabv3plus on resnet18".into(),
            about: "synthetic, f16 on flex".into(),
            iteration: 120,
            iterations: 500,
            pace: Pace {
                skipped: 3,
                culprit: Some("decode_head.conv_seg.weight".into()),
                scale: 512.0,
                images: 4,
                ..Pace::default()
            },
            miou: vec![(50.0, 20.0), (100.0, 41.5)],
            best: Some((100, 41.5)),
            ..State::default()
        };
        for i in 0..120 {
            state.loss.push((f64::from(i), 3.0 / f64::from(i + 1)));
            state.scale.push((f64::from(i), 9.0));
        }
        state.pace.seconds.add(0.5);
        state.pace.waited.add(0.125);
        state.shown_loss.add(0.25);
        state.accuracy.add(87.5);
        state.say("iteration 100: mIoU 41.50".into());
        state
    }

    fn drawn(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width.max(1)));
        let rows = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
        rows.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_large_terminal_shows_all() {
        let screen = drawn(&state(), 120, 40);
        for text in [
            "deeplabv3plus on resnet18",
            "120 of 500 iterations",
            "loss          0.2500",
            "87.5 %",
            "loss scale    512",
            "skipped steps 3 (decode_head.conv_seg.weight)",
            "pictures/s    8.00",
            "data wait     25 %",
            "left          0:03:10",
            "mIoU          41.50",
            "best mIoU     41.50 at 100",
            "mIoU, %",
            "loss scale, power of 2",
            "iteration 100: mIoU 41.50",
            "q or Ctrl-C: save and stop",
        ] {
            assert!(screen.contains(text), "expected `{text}` in:\n{screen}");
        }
    }

    #[test]
    fn the_usual_terminal_shows_curves_and_numbers() {
        let screen = drawn(&state(), 80, 24);
        for text in ["120 of 500", "pictures/s    8.00", "┌loss", "messages"] {
            assert!(screen.contains(text), "expected `{text}` in:\n{screen}");
        }
        let mut stopping = state();
        stopping.stopping = true;
        stopping.evaluating = Some((3, 40));
        let screen = drawn(&stopping, 80, 24);
        assert!(screen.contains("3 of 40 pictures evaluated") && screen.contains("stopping"));
    }

    #[test]
    fn a_narrow_terminal_shows_numbers_first() {
        let screen = drawn(&state(), 40, 14);
        assert!(
            screen.contains("pictures/s") && screen.contains("120 of 500"),
            "{screen}"
        );
    }

    #[test]
    fn no_size_and_no_state_is_too_small() {
        let empty = State::default();
        let full = state();
        for width in [0, 1, 2, 3, 7, 20, 29, 30, 75, 76, 200] {
            for height in [0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 23, 24, 60] {
                drawn(&empty, width, height);
                drawn(&full, width, height);
            }
        }
        assert!(drawn(&full, 30, 1).contains("deeplabv3plus"));
        let mut strange = state();
        strange.iterations = 0;
        strange.miou = vec![(1.0, f64::NAN)];
        strange.pace.seconds.add(f64::MAX);
        drawn(&strange, 100, 40);
    }
}
