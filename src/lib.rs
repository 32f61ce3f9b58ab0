//! Train neural networks end to end on images of any size under a memory cap.
