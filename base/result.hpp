// Result<T>: the one way a function of this project fails.
//
// The names follow std::expected (C++23, [expected.expected]) so that it can replace this type one day. Unlike
// tl::expected, a Result that is dropped is a compile error. Results are not thread-safe objects; they are values.
#pragma once

#include <cassert>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include <fmt/format.h>

namespace coffer {

// What kind of failure it is: callers branch on it, and the CLI maps it to an exit code (docs/cli.md).
enum class ErrorCode : uint8_t {
    Internal,          // a state that should not arise; never the user's fault
    InvalidArgument,   // the command line or a configuration value
    NotFound,          // a named thing does not exist
    AlreadyExists,     // a named thing exists already
    Permission,        // the host refused, or a file's mode is wider than allowed
    Busy,              // a lock is held by another process
    Io,                // a system call on a file, socket or device failed
    NoSpace,           // the disk is full or the quota is used up
    Corrupt,           // malformed input that has no integrity protection (an image, a peer's message)
    Integrity,         // a protected file failed authentication, is missing, or was rolled back
    KeyUnavailable,    // a key provider cannot give the key
    Unsupported,       // this host, backend or version cannot do it
    Timeout,           // a deadline passed
    Cancelled,         // the user or a peer stopped it
};

std::string_view to_string(ErrorCode code) noexcept;

// A failure and what the user can do about it. The message says what happened, to what, and, where there is one, the
// way out. It never holds secret bytes.
class [[nodiscard]] Error {
public:
    Error(ErrorCode code, std::string message) : m_message(std::move(message)), m_code(code) {}

    ErrorCode code() const noexcept { return m_code; }
    std::string const& message() const noexcept { return m_message; }

    // Puts the larger operation in front: "cannot open home 'vm1': <message>".
    Error with_context(std::string_view context) && {
        m_message = fmt::format("{}: {}", context, m_message);
        return std::move(*this);
    }

private:
    std::string m_message;
    ErrorCode m_code;
};

template <class... Args>
Error make_error(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
    return Error(code, fmt::format(format, std::forward<Args>(args)...));
}

// Io (or NoSpace, Permission, NotFound where errno says so) with strerror(errno_value) behind the text.
Error errno_error(int errno_value, std::string_view what);

template <class T>
class [[nodiscard]] Result {
    static_assert(!std::is_reference_v<T> && !std::is_same_v<std::remove_cv_t<T>, Error>);

public:
    using value_type = T;

    Result(T value) : m_state(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : m_state(std::in_place_index<1>, std::move(error)) {}

    bool has_value() const noexcept { return m_state.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }

    T& value() & { return checked(); }
    T const& value() const& { return const_cast<Result&>(*this).checked(); }
    T&& value() && { return std::move(checked()); }
    T& operator*() & { return checked(); }
    T const& operator*() const& { return const_cast<Result&>(*this).checked(); }
    T&& operator*() && { return std::move(checked()); }
    T* operator->() { return &checked(); }
    T const* operator->() const { return &const_cast<Result&>(*this).checked(); }

    Error& error() & { return std::get<1>(m_state); }
    Error const& error() const& { return std::get<1>(m_state); }
    Error&& error() && { return std::get<1>(std::move(m_state)); }

private:
    T& checked() {
        auto* value = std::get_if<0>(&m_state);
        if (!value) result_misuse();
        return *value;
    }
    [[noreturn]] static void result_misuse() noexcept;

    std::variant<T, Error> m_state;
};

[[noreturn]] void abort_with(std::string_view what) noexcept;

template <class T>
void Result<T>::result_misuse() noexcept {
    abort_with("value of a failed Result was taken");
}

template <>
class [[nodiscard]] Result<void> {
public:
    using value_type = void;

    Result() = default;
    Result(Error error) : m_error(std::in_place_index<1>, std::move(error)) {}

    bool has_value() const noexcept { return m_error.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }
    void value() const {
        if (!has_value()) abort_with("value of a failed Result was taken");
    }

    Error& error() & { return std::get<1>(m_error); }
    Error const& error() const& { return std::get<1>(m_error); }
    Error&& error() && { return std::get<1>(std::move(m_error)); }

private:
    std::variant<std::monostate, Error> m_error;
};

namespace detail {
template <class T>
T take(Result<T>&& result) {
    return std::move(result).value();
}
inline void take(Result<void>&&) {}
}  // namespace detail

// An invariant of ours; stays on in release builds.
#define COFFER_ASSERT(condition)                                                     \
    do {                                                                             \
        if (!(condition)) [[unlikely]]                                               \
            ::coffer::abort_with("assertion failed: " #condition " in " __FILE__);   \
    } while (false)

// The value of `expression`, or return its error from the enclosing function.
#define TRY(expression)                                                              \
    __extension__({                                                                  \
        auto coffer_try_result = (expression);                                       \
        if (!coffer_try_result) [[unlikely]]                                         \
            return std::move(coffer_try_result).error();                             \
        ::coffer::detail::take(std::move(coffer_try_result));                        \
    })

// The same, with a context in front of the error's message.
#define TRY_CONTEXT(expression, context)                                             \
    __extension__({                                                                  \
        auto coffer_try_result = (expression);                                       \
        if (!coffer_try_result) [[unlikely]]                                         \
            return std::move(coffer_try_result).error().with_context(context);       \
        ::coffer::detail::take(std::move(coffer_try_result));                        \
    })

}  // namespace coffer
