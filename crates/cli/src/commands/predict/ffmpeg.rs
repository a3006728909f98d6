//! Films through the programs ffmpeg and ffprobe, frame by frame.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail};
use halfseg_data::{ImageReader, RgbImage};
use serde_json::Value;

use crate::failure::Usage;

/// Characters of what a program says that are repeated in a message.
const LONGEST_WORDS: usize = 1000;

/// What is read: a file, or what ffmpeg knows under the name of a format, such as a camera.
pub struct Source<'a> {
    /// The file or the device.
    pub name: &'a Path,
    /// The format, of a device.
    pub format: Option<&'a str>,
}

/// What ffprobe knows of a film.
#[derive(Debug, PartialEq)]
pub struct Facts {
    /// Frames a second, as a fraction.
    pub rate: String,
    /// How many frames there are, as far as it is known.
    pub frames: Option<u64>,
    /// Whether there is sound.
    pub sound: bool,
}

impl Source<'_> {
    /// What stands behind `-i`, and before it.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut input = OsString::new();
        match self.format {
            Some(format) => arguments.extend(["-f".into(), format.into()]),
            // A name may begin with a dash or hold a colon, which ffmpeg would take for something else.
            None => input.push("file:"),
        }
        input.push(self.name);
        arguments.extend(["-i".into(), input]);
        arguments
    }

    /// Looks at it.
    pub fn probe(&self) -> Result<Facts> {
        let entries = "stream=codec_type,avg_frame_rate,r_frame_rate,nb_frames,duration:\
                       stream_disposition=attached_pic:format=duration";
        let mut command = program("ffprobe");
        command
            .args(["-v", "error", "-of", "json", "-show_entries", entries])
            .args(self.arguments());
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|error| missing("ffprobe", error))?;
        let said = words(&output.stderr);
        if !output.status.success() {
            bail!("{}: ffprobe does not read it: {said}", self.name.display());
        }
        let facts: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{}: ffprobe gave no JSON", self.name.display()))?;
        Facts::of(&facts).ok_or_else(|| {
            anyhow!(
                "{}: expected a film, found no pictures that move in it",
                self.name.display()
            )
        })
    }

    /// Its frames at a constant rate: those that are missing are repeated, so that sound and pictures stay together.
    pub fn frames(&self, facts: &Facts) -> Result<Frames> {
        let mut command = program("ffmpeg");
        command
            .args(["-nostdin", "-v", "error"])
            .args(self.arguments())
            .args(["-map", "0:V:0", "-vf"])
            .arg(format!("fps={}:start_time=0", facts.rate))
            .args(["-c:v", "ppm", "-f", "image2pipe", "pipe:1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::start("ffmpeg", command)?;
        let out = process
            .child
            .stdout
            .take()
            .context("ffmpeg has an output")?;
        Ok(Frames {
            process,
            out: BufReader::with_capacity(1 << 16, out),
        })
    }
}

impl Facts {
    fn of(found: &Value) -> Option<Self> {
        let streams = found["streams"].as_array()?;
        let is = |stream: &&Value, kind: &str| stream["codec_type"] == kind;
        let video = streams
            .iter()
            .find(|stream| is(stream, "video") && stream["disposition"]["attached_pic"] != 1)?;
        let fraction = |key: &str| {
            let text = video[key].as_str()?;
            let (above, below) = text.split_once('/')?;
            let rate = above.parse::<f64>().ok()? / below.parse::<f64>().ok()?;
            (rate.is_finite() && rate > 0.0).then_some((text, rate))
        };
        // The mean, and the rate at which all times can be told: where both say much the same, the mean was rounded.
        let (mean, base) = (fraction("avg_frame_rate"), fraction("r_frame_rate"));
        let (rate, per_second) = match (mean, base) {
            (Some(mean), Some(base)) if (mean.1 / base.1 - 1.0).abs() < 0.01 => base,
            (Some(mean), _) => mean,
            (None, base) => base?,
        };
        let number = |value: &Value| value.as_str()?.parse::<f64>().ok();
        let duration = number(&video["duration"]).or_else(|| number(&found["format"]["duration"]));
        let frames = number(&video["nb_frames"]).filter(|frames| *frames > 0.0);
        let frames = frames.or(duration.map(|seconds| (seconds * per_second).round()));
        Some(Self {
            rate: rate.to_owned(),
            frames: frames.map(|frames| frames as u64),
            sound: streams.iter().any(|stream| is(&stream, "audio")),
        })
    }
}

/// The frames of a film, one after the other.
pub struct Frames {
    process: Process,
    out: BufReader<ChildStdout>,
}

impl Frames {
    /// The next frame; nothing at the end of the film.
    pub fn read(&mut self) -> Result<Option<RgbImage>> {
        match read_ppm(&mut self.out) {
            Ok(None) => self.process.finish().map(|()| None),
            Ok(frame) => Ok(frame),
            Err(error) => {
                let said = self.process.kill();
                let gap = if said.is_empty() { "" } else { ": " };
                Err(error).with_context(|| format!("ffmpeg's output cannot be read{gap}{said}"))
            }
        }
    }
}

/// A portable pixmap of 8 bits (the binary one of `netpbm`, `P6`), or nothing at the end.
fn read_ppm(source: &mut impl BufRead) -> Result<Option<RgbImage>> {
    if source.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut words = [const { String::new() }; 4];
    for word in &mut words {
        // Each ends with one white space.
        loop {
            let mut byte = [0];
            source.read_exact(&mut byte)?;
            if byte[0].is_ascii_whitespace() {
                break;
            }
            if word.len() == 10 {
                bail!("expected the head of a picture, found `{word}`");
            }
            word.push(byte[0].into());
        }
    }
    let number = |word: &str| word.parse::<u32>().ok().map(|number| number as usize);
    let [magic, width, height, most] = &words;
    let (Some(width), Some(height)) = (number(width), number(height)) else {
        bail!("expected a width and a height, found `{width} {height}`");
    };
    let pixels = width as u64 * height as u64;
    let limit = ImageReader::default().max_pixels;
    if magic != "P6" || most != "255" || pixels > limit {
        bail!(
            "expected a picture of 8 bits and at most {limit} pixels, found `{}`",
            words.join(" ")
        );
    }
    let mut data = vec![0; 3 * pixels as usize];
    source.read_exact(&mut data)?;
    Ok(Some(RgbImage::from_raw(width, height, data)?))
}

/// A film that is written.
pub struct Film {
    process: Process,
    frames: Option<ChildStdin>,
    size: (usize, usize),
}

impl Film {
    /// Begins one of pictures of `size` (width, height) at `path`, whose extension says the format, with the sound of
    /// `sound`, which ends with the pictures where they are `cut`.
    pub fn begin(
        path: &Path,
        size: (usize, usize),
        rate: &str,
        sound: Option<&Source<'_>>,
        cut: bool,
    ) -> Result<Self> {
        let mut command = program("ffmpeg");
        command
            .args([
                "-nostdin", "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
            ])
            .args([
                "-s",
                &format!("{}x{}", size.0, size.1),
                "-r",
                rate,
                "-i",
                "pipe:0",
            ]);
        if let Some(sound) = sound {
            command.args(sound.arguments());
        }
        command.args(["-map", "0:v:0"]);
        if sound.is_some() {
            command.args(["-map", "1:a", "-c:a", "copy"]);
        }
        if cut {
            command.arg("-shortest");
        }
        // What players show: a colour for two by two pixels, so that sides are even.
        command
            .args([
                "-vf",
                "pad=ceil(iw/2)*2:ceil(ih/2)*2",
                "-pix_fmt",
                "yuv420p",
            ])
            .arg({
                let mut output = OsString::from("file:");
                output.push(path);
                output
            })
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let mut process = Process::start("ffmpeg", command)?;
        let frames = process.child.stdin.take();
        Ok(Self {
            process,
            frames,
            size,
        })
    }

    /// Writes the next frame.
    pub fn push(&mut self, frame: &RgbImage) -> Result<()> {
        let (size, found) = (self.size, (frame.width, frame.height));
        if size != found {
            bail!("expected frames of one size, {size:?} (width, height), found {found:?}");
        }
        let frames = self.frames.as_mut().context("the film is not ended yet")?;
        match frames.write_all(&frame.data) {
            // It ended, and says why.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.process.finish()?;
                Err(error).context("ffmpeg takes no more frames")
            }
            result => result.context("ffmpeg takes no more frames"),
        }
    }

    /// Ends the film.
    pub fn end(mut self) -> Result<()> {
        drop(self.frames.take());
        self.process.finish()
    }
}

/// A program that runs, and is ended when it is not waited for.
struct Process {
    name: &'static str,
    child: Child,
    said: Option<JoinHandle<Vec<u8>>>,
}

impl Process {
    fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let started = command.stderr(Stdio::piped()).spawn();
        let mut child = started.map_err(|error| missing(name, error))?;
        // It would wait if nobody read what it says.
        let mut errors = child.stderr.take().context("stderr is a pipe")?;
        let said = thread::spawn(move || {
            let mut kept = Vec::new();
            let mut part = [0; 4096];
            while let Ok(read @ 1..) = errors.read(&mut part) {
                let room = (4 * LONGEST_WORDS).saturating_sub(kept.len());
                kept.extend_from_slice(&part[..read.min(room)]);
            }
            kept
        });
        Ok(Self {
            name,
            child,
            said: Some(said),
        })
    }

    /// Waits for its end, which must be a good one. What it said nevertheless is a warning.
    fn finish(&mut self) -> Result<()> {
        let status = self.child.wait().context("cannot wait for a program")?;
        let said = self.said();
        if !status.success() {
            bail!("{} ended with {status}: {said}", self.name);
        }
        if !said.is_empty() {
            warning!("{} says: {said}", self.name);
        }
        Ok(())
    }
}

impl Process {
    /// What it said until its end.
    fn said(&mut self) -> String {
        let said = self.said.take().and_then(|said| said.join().ok());
        words(&said.unwrap_or_default())
    }

    /// Ends it; what it said.
    fn kill(&mut self) -> String {
        // Ended already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.said()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program that the terminal's Ctrl-C does not end: this one ends it when it is time.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
}

fn missing(name: &str, error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::NotFound => {
            let why = format!(
                "--video: expected the program {name} on the PATH, found none; it comes with ffmpeg \
                 (Debian: apt-get install ffmpeg)"
            );
            Usage(why).into()
        }
        _ => anyhow::Error::new(error).context(format!("cannot start {name}")),
    }
}

/// What a program said, in one line.
fn words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let mut text = lines.join("; ");
    if let Some((end, _)) = text.char_indices().nth(LONGEST_WORDS) {
        text.truncate(end);
        text += " (and so on)";
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pixmaps_are_read_one_after_the_other() {
        let bytes = b"P6\n2 1\n255\nabcdefP6\n1 1\n255\nxyz";
        let mut source = &bytes[..];
        let first = read_ppm(&mut source).unwrap().unwrap();
        assert_eq!(
            (first.width, first.height, &first.data[..]),
            (2, 1, &b"abcdef"[..])
        );
        assert_eq!(read_ppm(&mut source).unwrap().unwrap().data, b"xyz");
        assert_eq!(read_ppm(&mut source).unwrap(), None);
        for bad in [
            &b"P5\n1 1\n255\nx"[..],
            b"P6\n1 1\n65535\nxxxxxx",
            b"P6\n1 1\n255\nxy",
            b"P6\n0 1\n255\n",
            b"P6\n-1 1\n255\nxyz",
            b"P6\n99999 99999\n255\n",
            b"P6\n99999999999 1\n255\n",
            b"P6\n1",
        ] {
            assert!(
                read_ppm(&mut &bad[..]).is_err(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
    }

    #[test]
    fn rates_and_lengths_are_those_of_the_pictures_that_move() {
        let video = |mean: &str, base: &str| {
            json!({
                "codec_type": "video", "avg_frame_rate": mean, "r_frame_rate": base, "duration": "2.0",
                "disposition": { "attached_pic": 0 }
            })
        };
        let check = |streams: Vec<Value>, expected: Option<(&str, u64, bool)>| {
            let expected = expected.map(|(rate, frames, sound)| Facts {
                rate: rate.to_owned(),
                frames: Some(frames),
                sound,
            });
            assert_eq!(Facts::of(&json!({ "streams": streams })), expected);
        };
        check(vec![video("25/1", "25/1")], Some(("25/1", 50, false)));
        // Rounded, and varying.
        check(
            vec![video("2997/100", "30000/1001")],
            Some(("30000/1001", 60, false)),
        );
        check(vec![video("12/1", "90000/1")], Some(("12/1", 24, false)));
        check(vec![video("0/0", "10/1")], Some(("10/1", 20, false)));
        check(vec![video("0/0", "0/0")], None);
        let mut cover = video("90000/1", "90000/1");
        cover["disposition"]["attached_pic"] = 1.into();
        let sound = json!({ "codec_type": "audio" });
        check(vec![cover.clone(), sound.clone()], None);
        let mut film = video("25/1", "25/1");
        film["nb_frames"] = "49".into();
        check(vec![cover, sound, film], Some(("25/1", 49, true)));
        check(vec![], None);
    }

    #[test]
    fn what_programs_say_is_short_and_in_one_line() {
        assert_eq!(words(b"one\n\n  two\r\n"), "one; two");
        assert!(words(&[b'x'; 5000]).len() < LONGEST_WORDS + 20);
    }
}
