//! Time cut into equal pieces, and the sum of something in each.

/// Shortest piece, in seconds: shorter ones show the single answers of a link and not how full it is.
const PIECE_MIN_S: f64 = 0.25;
/// Most pieces: more would be narrower than a pixel.
const PIECES_MAX: f64 = 1200.0;

/// Sums by time.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// Length of a piece, in seconds.
    pub piece_s: f64,
    /// The sum of each.
    pub sums: Vec<f64>,
}

impl Timeline {
    /// Zeroes from the start to `end_s`.
    pub fn new(end_s: f64) -> Self {
        let mut piece_s = PIECE_MIN_S;
        while end_s / piece_s > PIECES_MAX {
            piece_s *= 2.0;
        }
        Self { piece_s, sums: vec![0.0; (end_s / piece_s).ceil().max(1.0) as usize] }
    }

    /// Spreads `amount` evenly over a span of time. What lies behind the end is lost.
    pub fn add(&mut self, from_s: f64, to_s: f64, amount: f64) {
        let first = (from_s / self.piece_s) as usize;
        let last = (to_s / self.piece_s) as usize;
        for at in first..=last.min(self.sums.len() - 1) {
            let piece = (at as f64 * self.piece_s, (at + 1) as f64 * self.piece_s);
            let inside = (to_s.min(piece.1) - from_s.max(piece.0)).max(0.0);
            self.sums[at] += if to_s > from_s { amount * inside / (to_s - from_s) } else { amount };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_spread_over_its_time() {
        let mut line = Timeline::new(1.0);
        line.add(0.125, 0.625, 8.0);
        line.add(0.5, 0.5, 1.0);
        line.add(0.75, 1.75, 4.0);
        assert_eq!(line.sums, [2.0, 4.0, 3.0, 1.0]);
    }

    #[test]
    fn the_number_of_pieces_is_bounded_and_never_nothing() {
        assert_eq!(Timeline::new(0.0).sums.len(), 1);
        let day = Timeline::new(86_400.0);
        assert!(day.sums.len() <= 1200 && day.piece_s * 1200.0 >= 86_400.0, "{}", day.piece_s);
    }
}
